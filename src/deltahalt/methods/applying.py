"""`applying(model, method)`: the one entry for whoever runs or measures a method, of whichever stage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted, HaltedKV
from deltahalt.errors import UnsupportedError
from deltahalt.flops import ModelShape, dense_loads, policy_loads, true_flops
from deltahalt.methods.base import Ends, Method
from deltahalt.methods.registry import AnyMethod

Prompts = dict[str, torch.Tensor]  # input_ids and attention_mask, each [B, T], padded on the left


class Applied:
    """A model under a method. `halted`: its engine, whose `report` tells what the latest prefill did."""

    def __init__(self, halted: Halted, model: Any, method: AnyMethod, tokenizer: Any) -> None:
        self.halted, self.model, self.method, self.tokenizer = halted, model, method, tokenizer
        self.spent = 0  # FLOPs that chose the latest prompts' tokens

    @torch.no_grad()
    def shorten(self, prompts: Prompts, ends: Sequence[Ends | None] | None = None) -> Prompts:
        """What the model is to read of `prompts`: all, save for a prompt-stage method. Belongs to the time it takes.

        ends: for each prompt how many tokens it has before and after its context, where that is known.
        """
        if not isinstance(self.method, Method):
            return prompts
        ids, mask = prompts["input_ids"], prompts["attention_mask"].bool()
        rows = [row[real] for row, real in zip(ids, mask, strict=True)]
        self.spent = sum(self.method.choosing_flops(self.halted.shape, len(row)) for row in rows)
        rows = [
            self.method.shorten(self.model, self.tokenizer, row, own)
            for row, own in zip(rows, ends or [None] * len(rows), strict=True)
        ]
        width = max(map(len, rows))
        short = {"input_ids": ids.new_zeros(len(rows), width), "attention_mask": ids.new_zeros(len(rows), width)}
        for number, row in enumerate(rows):
            short["input_ids"][number, width - len(row) :] = row
            short["attention_mask"][number, width - len(row) :] = 1
        return short

    @property
    def by_token(self) -> bool:
        """Whether an answer that is given must be fed one token at a time, as in generation."""
        return isinstance(self.method, Method) and self.method.by_token

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
    halted_kv: HaltedKV = "drop",
    min_prompt_tokens: int = 0,
    timed: bool = False,
) -> Iterator[Applied]:
    """Run `model` under a method of any stage inside the `with` block: `halting` for a policy, and its like for others.

    Give prompts to the model by way of `Applied.shorten`. tokenizer: the model's, which some prompt-stage methods need.
    timed: as in `halting`. halted_kv, min_prompt_tokens: as in `halting`; for policies only.

    Raises what `halting` and the method raise.
    """
    if isinstance(method, Method):
        if halted_kv != "drop" or min_prompt_tokens:
            raise UnsupportedError(
                f"{method.name} halts no tokens: halted_kv and min_prompt_tokens are for methods of the LLM stage"
            )
        method.prepare(model, tokenizer)
        context = method.attached(model)
    else:
        context = halting(model, method, halted_kv=halted_kv, min_prompt_tokens=min_prompt_tokens)
    with context as halted:
        halted.timed = timed
        yield Applied(halted, model, method, tokenizer)


def speedup_bound(shape: ModelShape, method: AnyMethod, tokens: int) -> float:
    """Ratio of the full model's true FLOPs to the method's, until the first new token of a prompt of `tokens`."""
    full = true_flops(shape, dense_loads(shape.layers, tokens), tokens)
    if isinstance(method, Method):
        return full / method.flops(shape, tokens)
    return full / true_flops(shape, policy_loads(method, shape.layers, tokens), tokens)
