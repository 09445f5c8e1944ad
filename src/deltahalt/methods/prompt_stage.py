"""A prompt-stage method: scores the tokens of a prompt, and the model reads the best of them and no others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.methods.base import Ends, Method, Prompts
from deltahalt.policies.selection import halted_count, refuse_nan, top_k


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method that drops prompt tokens before the model runs; those kept are a new prompt, numbered from 0.

    pruning_ratio: share of the prompt's eligible tokens that is dropped, in [0, 1), counted in the model's own tokens.
    keep_first, keep_last: tokens at either end of the prompt that are never dropped. Where it is known which tokens
        are the context, these are eligible in their place, and instruction and question stay whole.
    Raises PolicyError on settings out of range.
    """

    stage: ClassVar[str] = "prompt"

    pruning_ratio: float = 0.667
    keep_first: int = 64
    keep_last: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruning_ratio < 1:
            raise PolicyError(f"pruning_ratio is {self.pruning_ratio!r}; it must lie in [0, 1)")
        if self.keep_first < 0 or self.keep_last < 0:
            raise PolicyError("keep_first and keep_last are numbers of tokens: give 0 or more")

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [m] of a prompt's context, and the score of each [m]; the highest stay. ids: [n], the prompt."""
        raise NotImplementedError

    def kept(self, eligible: int) -> int:
        """How many of so many eligible tokens stay."""
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
        """The tokens [k] that the model is to read of a prompt `ids` [n]. ends: where its context lies, if known."""
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
    """The pruning ratio at which a prompt of `tokens` costs the method no more than `flops`, to four digits.

    So a prompt-stage method can stand beside a policy at equal FLOPs: `ratio_for(BM25(), shape, tokens, full / 1.7)`.
    Raises PolicyError where no ratio costs so little.
    """
    low, high = 0, 9_999
    if replace(method, pruning_ratio=high / 10_000).flops(shape, tokens) > flops:
        raise PolicyError(
            f"{method.name} costs more than {flops:.3g} FLOPs on {tokens} tokens at any ratio: allow more, or keep "
            "fewer tokens at the ends (keep_first, keep_last)"
        )
    while low < high:
        middle = (low + high) // 2
        if replace(method, pruning_ratio=middle / 10_000).flops(shape, tokens) > flops:
            low = middle + 1
        else:
            high = middle
    return low / 10_000
