"""The front doors: `halting(model, policy)`, and `applying(model, method)` for methods of all stages."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from deltahalt.engine import attach
from deltahalt.engine.attach import find_decoder, sees_images
from deltahalt.engine.halted import Halted
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.methods.base import Ends, Method, Prompts
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies.base import AnyPolicy
from deltahalt.profile import find_policy
from deltahalt.vision.attach import halted_tower
from deltahalt.vision.policy import VisionPolicy


def halting(
    model: Any,
    policy: AnyPolicy | str,
    *,
    min_prompt_tokens: int = 0,
    timed: bool = False,
    vision: VisionPolicy | str | None = None,
) -> AbstractContextManager[Halted]:
    """Halt prompt tokens in every prefill of `model` inside the `with` block; decoding stays as it is.

    Args:
        model: A Hugging Face causal language model, or vision-language model, of a known family.
        policy: A Policy or Progressive; or its text, see `parse_policy`. "auto" is the policy that calibration found
            best for this model, "auto-query-free" the one for prompts without their question, and a path to a profile
            is what that chose.
        min_prompt_tokens: Shorter prompts stay whole.
        timed: Measure each prefill's seconds, which waits for the device.
        vision: A policy of the ViT or its text, which leaves fewer visual tokens inside it as well.

    Returns:
        A context that yields the halted model, whose `report` has what the latest prefill did, and `vision_report`
        what the ViT did. On any exit the model is as before.

    Raises:
        UnsupportedError: For a model that cannot be halted.
        PolicyError: For what is not a policy, or does not fit the model. A method of another stage needs `applying`.
        InputError: For a profile that is missing, of another model, or without a policy as fast.
    """
    decoder = find_decoder(model)
    chosen = find_policy(policy, decoder, vision=sees_images(model, decoder))
    tower = None if vision is None else halted_tower(model, vision)
    return attach.halting(model, chosen, min_prompt_tokens=min_prompt_tokens, timed=timed, tower=tower)


class Applied:
    """A model under a method. `halted`: its engine, whose `report` has what the latest prefill did."""

    def __init__(self, halted: Halted, model: Any, method: Method, tokenizer: Any) -> None:
        self.halted, self.model, self.method, self.tokenizer = halted, model, method, tokenizer
        self.spent = 0  # FLOPs that chose the latest prompts' tokens

    @torch.no_grad()
    def shorten(self, prompts: Prompts, ends: Sequence[Ends | None] | None = None) -> Prompts:
        """The prompts as the model is to read them: whole, except for a prompt-stage method. This takes time, too.

        ends: for each prompt how many tokens it has before and after its context, where that is known.
        """
        rows = len(prompts["input_ids"])
        short = self.method.shorten(self.model, self.tokenizer, prompts, ends or [None] * rows)
        if short is not prompts:
            lengths = prompts["attention_mask"].sum(dim=1).tolist()
            self.spent = sum(self.method.choosing_flops(self.halted.shape, length) for length in lengths)
        return short

    @property
    def by_token(self) -> bool:
        """Whether a given answer must be run one token at a time, as in generation."""
        return self.method.by_token

    @property
    def flops(self) -> int:
        """True FLOPs of the model until the first new token of the latest prompts, what chose their tokens included."""
        return self.spent + self.halted.report.flops


@contextmanager
def applying(
    model: Any,
    method: AnyMethod,
    tokenizer: Any = None,
    *,
    min_prompt_tokens: int = 0,
    timed: bool = False,
) -> Iterator[Applied]:
    """Run `model` under a policy, or a method of any other stage, inside the `with` block.

    Give prompts to the model by way of `Applied.shorten`. tokenizer: the model's, which some prompt-stage methods need.
    timed: as in `halting`. min_prompt_tokens: as in `halting`; for policies only.

    Raises what `halting` and the method raise.
    """
    chosen = method_of(method)
    with chosen.attach(model, tokenizer, min_prompt_tokens=min_prompt_tokens) as halted:
        halted.timed = timed
        yield Applied(halted, model, chosen, tokenizer)


def speedup_bound(shape: ModelShape, method: AnyMethod, tokens: int) -> float:
    """Ratio of the full model's true FLOPs to the method's, until the first new token of a prompt of `tokens`."""
    return true_flops(shape, dense_loads(shape.layers, tokens), tokens) / method_of(method).flops(shape, tokens)
