"""lmms-eval with halting: its Qwen2-VL model, known to it as `deltahalt_qwen2_vl`.

Visual tokens leave inside the ViT, prompt tokens halt in the language model, and what is generated after them does not.
With the policy `dense` and no policy for the ViT every answer is that of lmms-eval's own `qwen2_vl`.
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
from deltahalt.engine.attach import find_decoder, halting, sees_images
from deltahalt.engine.halted import Halted
from deltahalt.errors import InputError
from deltahalt.host.stand_in import swap_in
from deltahalt.policies import parse_policy
from deltahalt.policies.text import with_options
from deltahalt.profile import check_profile, names_profile, resolve
from deltahalt.vision import halting_vision
from deltahalt.vision.policies import parse_vision_policy

OWN = inspect.signature(Qwen2_VL.__init__).parameters.keys() - {"self", "kwargs"}
OF_VISION = "vision_"  # begins the options of the ViT's policy

log = logging.getLogger(__name__)


class DeltahaltQwen2VL(Qwen2_VL):
    """lmms-eval's Qwen2-VL with halting around generation.

    pretrained: hub id or local folder. policy: text, of a policy of the LLM stage; its options stand by themselves,
    `policy=dash,scope=visual,pruning_ratio=0.65`. vision_policy: text, of a policy of the ViT stage; its options have
    `vision_` before them, `vision_policy=vision-dash,vision_retain=0.35`. min_prompt_tokens: as in
    `halting`. options: those of lmms-eval's Qwen2-VL, or of the policies.

    What generation took goes to lmms-eval's results, under `throughput`. Raises what `halting` and `halting_vision`
    raise, and InputError for an option of a ViT-stage policy that is not there.
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
        if "device" in own:  # of lmms-eval's command; its class puts weights on "cuda" whatever that says
            own.setdefault("device_map", own["device"])
        vision = {name: options.pop(name) for name in list(options) if name.startswith(OF_VISION)}
        if vision and vision_policy is None:
            raise InputError(f"{', '.join(vision)} without a policy for the ViT: add vision_policy=vision-dash, say")
        if names_profile(policy):
            check_profile(policy, options)
        else:
            parse_policy(with_options(policy, options))  # refuses what is not a policy before the model is loaded
        typed = {name.removeprefix(OF_VISION): value for name, value in vision.items()}
        self.vision_policy = None if vision_policy is None else parse_vision_policy(with_options(vision_policy, typed))
        self.settings: dict[str, Any] = {"min_prompt_tokens": min_prompt_tokens}
        super().__init__(pretrained, **own)
        decoder = find_decoder(self.model)
        resolved = resolve(policy, decoder, vision=sees_images(self.model, decoder), options=options)
        for note in resolved.notes:
            log.warning("%s: %s: %s", policy, note, resolved.text)
        self.policy = parse_policy(resolved.text)
        with self.metered():  # so that a policy which does not fit the model is refused before anything runs
            pass

    def generate_until(self, requests: list[Any]) -> list[str]:
        with self.metered() as costs:
            answers: list[str] = super().generate_until(requests)
        costs.log()
        return answers

    @contextmanager
    def metered(self) -> Iterator["Costs"]:
        """Halt in the model inside the `with` block, and count what its `generate` takes."""
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
    """What `generate` took so far, of all prompts together.

    seconds, prefill_seconds: in all, and until the first token of each answer, the ViT included. flops: of the language
    model's prefill. vision_flops: of the ViT; None where no policy counts them. cache_bytes: K and V after the prefill.
    """

    prompts: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    flops: int = 0
    vision_flops: int | None = None
    cache_bytes: int = 0

    def metering(self, generate: Callable[..., torch.Tensor], halted: Halted) -> Callable[..., torch.Tensor]:
        """`generate` that adds what it takes."""

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
        """Add a pack of images."""
        self.vision_flops = (self.vision_flops or 0) + flops

    def log(self) -> None:
        """Hand the sums and the means of a prompt to lmms-eval, which adds `avg_` to the means' names."""
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
    """Stops nothing; `at`: when the first new token was there, on `clock`."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = clock()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
