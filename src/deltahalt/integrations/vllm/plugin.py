"""The entry point that vLLM calls in each of its processes: without an entry in the configuration nothing changes."""

from typing import Any

from vllm.config import CUDAGraphMode
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from deltahalt.integrations.vllm.counts import show_counts
from deltahalt.integrations.vllm.folder import folder_of, name_folder
from deltahalt.integrations.vllm.options import Settings
from deltahalt.integrations.vllm.refusals import MODELS, refuse_unsupported
from deltahalt.integrations.vllm.versions import PACKAGE, SCHEDULER, WORKER_V1, with_check

PREFIX = "Halting"


def register() -> None:
    """Register the models with halting beside vLLM's own, and a check of each configuration. May run repeatedly."""
    for name in MODELS:
        ModelRegistry.register_model(PREFIX + name, f"{PACKAGE}.model:{name}")
    for name in ModelRegistry.get_supported_archs():
        before = MODELS_CONFIG_MAP.get(name, VerifyAndUpdateConfig)
        if not hasattr(before, "with_halting"):
            MODELS_CONFIG_MAP[name] = type(before.__name__, (before,), _hooks(before))


def _hooks(before: type[Any]) -> dict[str, Any]:
    """What is added to vLLM's own changes `before` to the configuration of an architecture."""

    def verify_and_update_config(vllm_config: Any) -> None:
        before.verify_and_update_config(vllm_config)
        configure(vllm_config)

    return {"verify_and_update_config": staticmethod(verify_and_update_config), "with_halting": True}


def choose_graphs(config: Any) -> None:
    """Let steps that only decode be CUDA graphs, and no others, where a VllmConfig leaves it open."""
    if config.compilation_config.cudagraph_mode is None:
        config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


def configure(config: Any) -> None:
    """Let the engine of a VllmConfig halt, if its additional_config says so.

    Raises as `refuse_unsupported` does, and InputError for options that are not known.
    """
    settings = Settings.of(config.additional_config)
    if settings is None:
        return
    choose_graphs(config)
    refuse_unsupported(config, settings)
    model, runner_v2 = config.model_config, config.use_v2_model_runner
    if not runner_v2:
        config.parallel_config.worker_cls = WORKER_V1
    config.scheduler_config.scheduler_cls = SCHEDULER
    name_folder(config)
    show_counts(folder_of(config))
    model.hf_config.architectures = [PREFIX + model.architecture]
    model.logits_processors = with_check(model.logits_processors, runner_v2=runner_v2)
