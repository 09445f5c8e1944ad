"""Recorded steps of decoding on a CPU, and a conversation that puts them to the test."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from deltahalt import Policy, halting
from deltahalt.engine.cache import fork
from deltahalt.engine.recorded import decoding, obstacles
from deltahalt.engine.recorded.step import DecodeStep
from helpers.oracle import Feed
from helpers.tiny import VOCAB, prompts


@contextmanager
def recorded_steps() -> Iterator[list[DecodeStep]]:
    """Make the CPU a device that can record: in the block a step is computed again, where a graph would repeat it.

    Yields the step of each token that ran as one.
    """
    ran: list[DecodeStep] = []
    take = DecodeStep.show

    def show(step: DecodeStep, *args: object) -> None:
        ran.append(step)
        take(step, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstacles, "DEVICE", "cpu")
        patch.setattr(decoding, "record", lambda compute, _: compute)
        patch.setattr(DecodeStep, "show", show)
        yield ran


def decoded(model: Any, policy: Policy, *lengths: int, graphs: bool | None) -> torch.Tensor:
    """Logits [B, 7, V] of prompts of these lengths, and of six given tokens after them."""
    more = torch.randint(1, VOCAB, (len(lengths), 6), generator=torch.Generator().manual_seed(1)).to(model.device)
    ids, mask = prompts(*lengths)
    with halting(model, policy, decode_graphs=graphs):
        feed = Feed(model)
        logits = [feed(ids.to(model.device), mask.to(model.device), logits_to_keep=1)]
        logits += [feed(more[:, step : step + 1]) for step in range(6)]
    return torch.cat(logits, dim=1)


def conversation(model: Any, policy: Policy, *, graphs: bool) -> list[torch.Tensor]:
    """Logits of single tokens and of turns, between which the cache is cropped, copied, reordered and repeated."""
    more = torch.randint(1, VOCAB, (2, 5), generator=torch.Generator().manual_seed(1)).to(model.device)
    logits = []

    def turn(feed: Feed, *lengths: int) -> None:
        ids, mask = prompts(*lengths, seed=len(logits))
        logits.append(feed(ids.to(model.device), mask.to(model.device), logits_to_keep=1))

    def decode(feed: Feed, tokens: int = 4) -> None:
        logits.extend(feed(more[: len(feed.mask), step : step + 1]) for step in range(tokens))

    with halting(model, policy, decode_graphs=None if graphs else False):
        feed = Feed(model)
        turn(feed, 40, 29)
        decode(feed)
        turn(feed, 24, 17)
        decode(feed)
        twin, deep = Feed(model, fork(feed.cache)), Feed(model, copy.deepcopy(feed.cache))
        twin.mask = deep.mask = feed.mask
        feed.cache.crop(-2)
        feed.mask = feed.mask[:, :-2]
        for each in (feed, twin, deep):  # none sees what another one has written
            decode(each)
        for each in (feed, twin):
            each.cache.reorder_cache(torch.tensor([1, 0], device=model.device))
            each.mask = each.mask.flip(0)
            decode(each, 5)
        feed.cache.batch_select_indices(torch.tensor([1], device=model.device))
        feed.mask = feed.mask[1:]
        decode(feed)
    return logits
