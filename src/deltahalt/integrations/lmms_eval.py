"""lmms-eval with halting: its Qwen2-VL model, registered as `deltahalt_qwen2_vl`.

Visual tokens are reduced in the ViT, prompt tokens halt in the language model, and generated tokens never halt. With
the policy `dense` and no policy for the ViT, every answer equals that of lmms-eval's own `qwen2_vl`.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.simple.qwen2_vl import Qwen2_VL
from transformers import StoppingCriteria

from deltahalt.clock import clock
from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.errors import InputError
from deltahalt.host.stand_in import swap_in
from deltahalt.methods.applying import resolve_on
from deltahalt.policies import parse_policy
from deltahalt.policies.text import with_options
from deltahalt.profile import check_profile
from deltahalt.profile_names import names_profile
from deltahalt.vision import halting_vision
from deltahalt.vision.policies import parse_vision_policy

OWN = inspect.signature(Qwen2_VL.__init__).parameters.keys() - {"self", "kwargs"}
OF_VISION = "vision_"  # prefix of the options of the ViT-stage policy

log = logging.getLogger(__name__)


class DeltahaltQwen2VL(Qwen2_VL):
    """lmms-eval's Qwen2-VL, whose prompts halt during generation.

    lmms-eval's results report the time, FLOPs and cache size of generation under `throughput`.

    Args:
        pretrained: A hub id or a local folder.
        policy: The text of an LLM-stage policy. Its options are separate arguments:
            `policy=dash,scope=visual,pruning_ratio=0.65`.
        vision_policy: The text of a ViT-stage policy, or None. Its options are separate arguments with the prefix
            `vision_`: `vision_policy=vision-dash,vision_retain=0.35`.
        min_prompt_tokens: Shorter prompts are not halted.
        options: Options of lmms-eval's Qwen2-VL, of `policy`, or with `vision_` of `vision_policy`.

    Raises:
        InputError: For an option of a ViT-stage policy without `vision_policy`.
        DeltahaltError: What `halting` and `halting_vision` raise.
    """

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2-VL-7B-Instruct",
        policy: str = "dense",
        vision_policy: str | None = None,
        *,
        min_prompt_tokens: int = 0,
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in OWN & options.keys()}
        if "device" in own:  # from lmms-eval's command line; its class ignores this and puts weights on "cuda"
            own.setdefault("device_map", own["device"])
        vision = {name: options.pop(name) for name in list(options) if name.startswith(OF_VISION)}
        if vision and vision_policy is None:
            raise InputError(
                f"{', '.join(vision)} without a policy for the ViT: add one, such as vision_policy=vision-dash"
            )
        if names_profile(policy):
            check_profile(policy, options)
        else:
            parse_policy(with_options(policy, options))  # raises PolicyError before the model is loaded
        typed = {name.removeprefix(OF_VISION): value for name, value in vision.items()}
        self.vision_policy = None if vision_policy is None else parse_vision_policy(with_options(vision_policy, typed))
        self.settings: dict[str, Any] = {"min_prompt_tokens": min_prompt_tokens}
        super().__init__(pretrained, **own)
        resolved = resolve_on(self.model, policy, options)
        for note in resolved.notes:
            log.warning("%s: %s: %s", policy, note, resolved.text)
        self.policy = parse_policy(resolved.text)
        with self.metered():  # raises PolicyError for a policy that does not fit the model, before any sample runs
            pass

    def generate_until(self, requests: list[Any]) -> list[str]:
        with self.metered() as costs:
            answers: list[str] = super().generate_until(requests)
        costs.log()
        return answers

    @contextmanager
    def metered(self) -> Iterator["Costs"]:
        """Halt in the model inside the `with` block, and yield the costs of its `generate` calls."""
        costs, model = Costs(), self.model
        with ExitStack() as undo:
            if self.vision_policy is not None:
                tower = undo.enter_context(halting_vision(model, self.vision_policy))
                costs.vision_flops = 0
                undo.callback(tower.tower.register_forward_hook(lambda *_: costs.add_vision(tower.report.flops)).remove)
            halted = undo.enter_context(halting(model, self.policy, **self.settings))
            swap_in(model, "generate", costs.metering(model.generate, halted), undo)
            yield costs


@dataclass
class Costs:
    """Sums over all prompts so far of the time, FLOPs and cache size of `generate`.

    seconds: of whole calls. prefill_seconds: until each first token, the ViT included. flops: of the language model's
    prefill. vision_flops: of the ViT; None without a policy that counts them. cache_bytes: K and V after the prefill.
    """

    prompts: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    flops: int = 0
    vision_flops: int | None = None
    cache_bytes: int = 0

    def metering(self, generate: Callable[..., torch.Tensor], halted: Halted) -> Callable[..., torch.Tensor]:
        """Return a `generate` that adds its costs to these sums."""

        def metered(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            first, begin = FirstToken(), clock()
            tokens = generate(input_ids=input_ids, stopping_criteria=[first], **options)
            self.seconds += clock() - begin
            assert first.at is not None
            self.prefill_seconds += first.at - begin
            self.prompts += len(input_ids)
            self.new_tokens += tokens[:, input_ids.shape[1] :].numel()
            self.flops += halted.report.flops
            self.cache_bytes += halted.report.cache_bytes
            return tokens

        return metered

    def add_vision(self, flops: int) -> None:
        """Add the FLOPs of the ViT on one pack of images."""
        self.vision_flops = (self.vision_flops or 0) + flops

    def log(self) -> None:
        """Report sums, and means per prompt, to lmms-eval, which adds `avg_` to the means' names."""
        if not self.prompts:
            return
        means = {
            "prefill_seconds": self.prefill_seconds,
            "llm_prefill_tflops": self.flops / 1e12,
            "kv_cache_mb": self.cache_bytes / 1e6,
        }
        if self.vision_flops is not None:
            means["vit_tflops"] = self.vision_flops / 1e12
        log_metrics(
            total_elapsed_time=self.seconds,
            total_gen_tokens=self.new_tokens,
            avg_speed=self.new_tokens / self.seconds,
            additional_metrics={name: total / self.prompts for name, total in means.items()}
            | {"total_requests": self.prompts},
        )


class FirstToken(StoppingCriteria):
    """A criterion that never stops and stores in `at` the `clock` time of the first new token."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = clock()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
