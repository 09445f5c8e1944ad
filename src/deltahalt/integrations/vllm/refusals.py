"""What vLLM cannot do beside halting, each with what to set instead. It is refused before the engine starts."""

from collections.abc import Callable
from typing import Any

from vllm.config import CompilationMode, CUDAGraphMode
from vllm.platforms import current_platform

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.options import Settings
from deltahalt.integrations.vllm.versions import SCHEDULER, WORKER_V1, installed, refuse_unknown

MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def _windows(config: Any) -> bool:
    """Whether a layer of the model has a sliding window."""
    text = config.model_config.hf_text_config
    kinds = getattr(text, "layer_types", None)
    return bool(getattr(text, "sliding_window", None)) if kinds is None else set(kinds) != {"full_attention"}


def _more_graphs(config: Any) -> bool:
    """Whether vLLM captures graphs of more than steps that only decode."""
    graphs = (CUDAGraphMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY)
    return not config.model_config.enforce_eager and config.compilation_config.cudagraph_mode not in graphs


def _another_worker(config: Any) -> bool:
    return not config.use_v2_model_runner and config.parallel_config.worker_cls not in ("auto", WORKER_V1)


# Of a VllmConfig, here `c`: whether a feature is on, what is wrong with it, and what to set on the command line.
FEATURES: tuple[tuple[Callable[[Any], Any], str, str], ...] = (
    (
        lambda c: c.model_config.architecture not in MODELS,
        "the model is {c.model_config.architecture}",
        f"choose one of {', '.join(MODELS)}",
    ),
    (
        lambda c: c.model_config.runner_type != "generate",
        "embeddings and classification read tokens that halt",
        "set --runner generate",
    ),
    (
        _windows,
        "layers of this model have a sliding window",
        "choose a model whose layers all attend to the whole prompt",
    ),
    (
        lambda c: c.scheduler_config.scheduler_cls not in (None, SCHEDULER),
        "a scheduler of another class: halting has its own",
        "leave --scheduler-cls out",
    ),
    (
        lambda c: c.scheduler_config.long_prefill_token_threshold,
        "a threshold at which prompts are split: the states of several prompts would wait for their last chunks",
        "set --long-prefill-token-threshold 0",
    ),
    (
        _more_graphs,
        "CUDA graphs of steps with prompts: the number of tokens changes between layers",
        "leave cudagraph_mode out of --compilation-config, which gives graphs of steps that only decode",
    ),
    (
        lambda c: c.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE,
        "compiling the model as a whole, by stock torch.compile",
        "leave mode out of --compilation-config, which lets vLLM compile layers",
    ),
    (
        lambda c: getattr(c.compilation_config.pass_config, "enable_sp", False),
        "sequence parallelism: each GPU would have the states of other tokens",
        "leave enable_sp out of pass_config in --compilation-config",
    ),
    (
        lambda c: c.speculative_config,
        "speculative decoding: draft tokens would be counted as tokens of the prompt",
        "leave --speculative-config out",
    ),
    (lambda c: c.lora_config, "LoRA: its kernels expect all tokens in all layers", "leave --enable-lora out"),
    (
        lambda c: c.kv_transfer_config or getattr(c.cache_config, "kv_offloading_size", None),
        "moving the KV cache elsewhere: its layers hold different tokens",
        "leave --kv-transfer-config and --kv-offloading-size out",
    ),
    (
        lambda c: c.model_config.enable_prompt_embeds,
        "prompts given as embeddings, whose length is not known here",
        "leave --enable-prompt-embeds out",
    ),
    (
        lambda c: c.cache_config.kv_sharing_fast_prefill,
        "fast prefill, which also shortens the prompt in deep layers",
        "leave --kv-sharing-fast-prefill out",
    ),
    (lambda c: c.parallel_config.enable_dbo, "two batches in flight", "leave --enable-dbo out"),
    (
        lambda c: not c.use_v2_model_runner and not current_platform.is_cpu(),
        "model runner V1 on a GPU",
        "leave VLLM_USE_V2_MODEL_RUNNER unset, and what makes vLLM choose V1",
    ),
    (_another_worker, "a worker of another class: with model runner V1 halting has its own", "leave --worker-cls out"),
)
SPLIT = ("pipeline", "data", "decode_context", "prefill_context")  # kinds of parallel execution


def refuse_unsupported(config: Any, settings: Settings) -> None:
    """Raise UnsupportedError with everything in a VllmConfig that does not work with halting, and what to set.

    Raises InputError and PolicyError for a policy that does not exist or does not fit the model.
    """
    refuse_unknown(installed())
    problems = [f"{problem}: {advice}".format(c=config) for on, problem, advice in FEATURES if on(config)]
    for kind in SPLIT:
        size = getattr(config.parallel_config, f"{kind}_parallel_size")
        if size > 1:
            option = f"--{kind.replace('_', '-')}-parallel-size"
            problems.append(f"{size} processes for one model, which was not tested: set {option} 1")
    if problems:
        raise UnsupportedError(
            "halting does not work with these settings of vLLM:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + '\nTo run without halting, leave "deltahalt" out of --additional-config'
        )
    settings.check(config.model_config.hf_text_config.num_hidden_layers)
