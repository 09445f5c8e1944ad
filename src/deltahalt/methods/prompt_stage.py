"""The base of prompt-stage methods: they score the tokens of a prompt, and the model runs on the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.methods.base import Ends, Method, Prompts
from deltahalt.policies.options import require_at_least
from deltahalt.policies.selection import halted_count, refuse_nan, top_k


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method that drops prompt tokens before the model runs. Those kept are a new prompt, with positions from 0.

    A subclass overrides `score`.

    Attributes:
        pruning_ratio: Share of the eligible tokens that is dropped, in [0, 1), counted in the model's tokens.
        keep_first: Number of tokens at the start of the prompt that are never dropped, 0 or more. Where the position of
            the context is known, all tokens before it are kept instead, such as the instruction.
        keep_last: Number of tokens at the end of the prompt that are never dropped, 0 or more. Where the position of
            the context is known, all tokens after it are kept instead, such as the question.

    Raises:
        PolicyError: For an option out of range.
    """

    stage: ClassVar[str] = "prompt"
    reads_ends: ClassVar[bool] = True

    pruning_ratio: float = 0.667
    keep_first: int = 64
    keep_last: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruning_ratio < 1:
            raise PolicyError(f"pruning_ratio is {self.pruning_ratio!r}; it must lie in [0, 1)")
        require_at_least(self, 0, "keep_first", "keep_last")

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [m] of the context of a prompt `ids` [n], and their scores [m]. The highest scores stay."""
        raise NotImplementedError

    def kept(self, eligible: int) -> int:
        """Number of tokens that stay, out of `eligible` tokens."""
        return eligible - halted_count(eligible, self.pruning_ratio)

    def shorten(self, model: Any, tokenizer: Any, prompts: Prompts, ends: Sequence[Ends | None]) -> Prompts:
        ids, mask = prompts["input_ids"], prompts["attention_mask"].bool()
        rows = [
            self.shorten_one(model, tokenizer, row[real], own) for row, real, own in zip(ids, mask, ends, strict=True)
        ]
        width = max(map(len, rows))
        short = {"input_ids": ids.new_zeros(len(rows), width), "attention_mask": ids.new_zeros(len(rows), width)}
        for number, row in enumerate(rows):
            short["input_ids"][number, width - len(row) :] = row
            short["attention_mask"][number, width - len(row) :] = 1
        return short

    def shorten_one(self, model: Any, tokenizer: Any, ids: torch.Tensor, ends: Ends | None) -> torch.Tensor:
        """The tokens [k] of a prompt `ids` [n] that stay. ends: tokens before and after its context, if known."""
        first, last = ends or (self.keep_first, self.keep_last)
        context = slice(first, max(first, len(ids) - last))
        eligible = len(ids[context])
        count = self.kept(eligible)
        if count == eligible:
            return ids
        tokens, scores = self.score(model, tokenizer, ids, context)
        refuse_nan(scores, self.name)
        return torch.cat([ids[:first], tokens[top_k(scores, count)], ids[context.stop :]])

    def flops(self, shape: ModelShape, tokens: int) -> int:
        ends = min(tokens, self.keep_first + self.keep_last)
        kept = ends + self.kept(tokens - ends)
        return self.choosing_flops(shape, tokens) + true_flops(shape, dense_loads(shape.layers, kept), kept)


def ratio_for(method: PromptMethod, shape: ModelShape, tokens: int, flops: float) -> float:
    """The lowest pruning ratio, to four digits, at which a prompt of `tokens` tokens costs `flops` true FLOPs or less.

    It makes a prompt-stage method comparable with a policy at equal FLOPs: for one at 1.7x, set `flops` to the full
    model's divided by 1.7. Raises PolicyError where no ratio is high enough.
    """
    low, high = 0, 9_999
    if replace(method, pruning_ratio=high / 10_000).flops(shape, tokens) > flops:
        raise PolicyError(
            f"{method.name} costs more than {flops:.3g} FLOPs on {tokens} tokens at any pruning_ratio: allow more, or "
            "keep fewer tokens at the ends (keep_first, keep_last)"
        )
    while low < high:
        middle = (low + high) // 2
        if replace(method, pruning_ratio=middle / 10_000).flops(shape, tokens) > flops:
            low = middle + 1
        else:
            high = middle
    return low / 10_000
