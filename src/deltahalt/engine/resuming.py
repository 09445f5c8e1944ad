"""Halted tokens that run on: a later turn chooses those whose states are most similar to the turn's own."""

import math
from dataclasses import replace
from typing import Any

import torch

from deltahalt.engine.cache import HaltedCache, holds_all
from deltahalt.engine.call import DecoderCall
from deltahalt.engine.resting import Resting
from deltahalt.engine.stream import TokenStream
from deltahalt.policies.base import Policy, Stage
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.selection import nan_message

MOST = 4096  # tokens of a row that run on in one turn, so that their mask stays small however long the cache is
Checks = list[tuple[torch.Tensor, str]]  # whether scores hold a NaN; the message


def may_resume(stage: Stage, call: DecoderCall) -> bool:
    """Whether tokens that halt at `stage` in this call may run on in a later turn, so that their states are kept.

    Deeper layers then hold K/V out of the input's order, which FlashAttention and sliding windows do not support.
    """
    return (
        stage.resumed_share > 0
        and call.cache is not None
        and call.layout.kinds is None
        and not any(call.host.windows)
        and not call.host.attention.startswith("flash")
    )


def resting_in(call: DecoderCall, stages: tuple[Stage, ...]) -> Resting | None:
    """The tokens of earlier turns that may run on in this one, under a policy of these stages; None for none.

    None do where a layer holds fewer tokens than it was given, as after a KV press.
    """
    cache = call.cache
    resting = cache.resting if isinstance(cache, HaltedCache) else None
    if cache is None or resting is None or not resting.tokens.width or stages != (resting.stage,):
        return None
    return resting if may_resume(resting.stage, call) and holds_all(cache, call.masks.past) else None


def choose(resting: Resting, turn: TokenStream, layer: int) -> tuple[list[torch.Tensor], Checks]:
    """For each row, the ascending index of the tokens that run on, and checks of their scores.

    turn: the tokens of the later turn, in the states in which tokens halt at `layer`.
    """
    chosen, checks, tokens = [], [], resting.tokens
    for row, count in enumerate(tokens.lengths):
        index = torch.arange(count, device=tokens.hidden.device)
        wanted = min(MOST, math.ceil(resting.stage.resumed_share * count))
        if wanted < count:
            policy = resting.stage.policies[0]
            asking = _ends(turn.hidden[row, turn.row(row)], policy).to(index.device)
            view = _view(torch.cat([tokens.hidden[row, tokens.row(row)], asking]), layer, resting.stage)
            policy = _choosing(policy, len(asking), wanted)
            scores = policy.score(view)
            checks.append((torch.isnan(scores).any(), nan_message(policy.name)))
            index = policy.choose(scores, view)[:wanted]
        chosen.append(index)
    return chosen, checks


def _ends(states: torch.Tensor, policy: Policy) -> torch.Tensor:
    """The states [m, D] of a turn; of a long one, those of the tokens that the policy protects at its ends."""
    first, last = policy.ends
    return states if len(states) <= first + last else torch.cat([states[:first], states[-last:]])


def _choosing(policy: Policy, asking: int, wanted: int) -> Policy:
    """The policy that keeps `wanted` tokens and the last `asking`, which alone are query tokens."""
    kept: dict[str, Any] = {"keep": wanted + asking, "pruning_ratio": type(policy).pruning_ratio, "shortest": 0}
    return replace(policy, keep_first=0, keep_last=asking, **kept)


def _view(states: torch.Tensor, layer: int, stage: Stage) -> LayerView:
    """A view of tokens in these states [n, D], as if they were a prompt."""
    return LayerView(
        layer=layer,
        prompt=len(states),
        positions=torch.arange(len(states), device=states.device),
        hidden_in=states,
        update=states[:0],
        hidden_out=None if stage.boundary == "attention" else states,
        queries=lambda _: states[:0],
        keys=lambda: states[:0],
        scaling=1.0,
    )
