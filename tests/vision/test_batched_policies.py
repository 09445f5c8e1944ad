"""Methods in ViTs that run batches, each against the same worked out by hand on one image."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from deltahalt.vision import PruMergePlus, VisionPolicy, VisionZip
from helpers import batched_oracle
from helpers.batched_oracle import SIDES, Patches
from helpers.batched_towers import CLOSE, DEPTH, TOKENS, TOWERS, halted, images_of, model_of
from helpers.vit_naive import match_naively, mean, prumerge_naively, visionzip_naively
from helpers.vit_policies import each_merging

# Methods behind the tower


def attention_naively(patches: Patches, tokens: torch.Tensor) -> list[float]:
    """What the class token pays to each visual token; without one, what it receives from all patches."""
    logits = torch.einsum("qhd,khd->hqk", patches.queries, patches.keys) * 16**-0.5
    weights = logits.softmax(dim=-1).mean(dim=0)
    paid = weights[0, 1:] if patches.lead else weights.sum(dim=0)
    return torch.zeros(TOKENS).index_add(0, tokens, paid).tolist()


def looked_at(name: str, model: Any, image: torch.Tensor) -> tuple[list[Patches], Patches]:
    """The rows before the first block and behind each, and those behind the attention of the last but one."""
    seen = []

    def look(where: str, index: int, patches: Patches) -> Patches:
        if (where, index) == ("attention", DEPTH - 2):
            seen.append(patches)
        return patches

    return batched_oracle.run(name, model, image, look), seen[0]


@pytest.mark.parametrize(
    ("policy", "naively"),
    [
        (VisionZip(retain=0.5, contextual=0.4), partial(visionzip_naively, count=8, targets=3)),
        (PruMergePlus(retain=0.4, neighbours=3), partial(prumerge_naively, count=6, neighbours=3)),
    ],
    ids=["visionzip", "prumerge-plus"],
)
@pytest.mark.parametrize("name", TOWERS)
def test_a_method_behind_the_tower_equals_the_same_by_hand(name: str, policy: VisionPolicy, naively: Any) -> None:
    model = model_of(name)
    features, report = halted(name, model, policy)
    for image, ours, kept in zip(images_of(name), features, report.kept, strict=True):
        with torch.no_grad():
            found, looked = looked_at(name, model, image)
            states = batched_oracle.outgoing(name, model, found)
        lead = found[0].lead
        tokens = batched_oracle.token_of(name, len(states) - lead)
        members = [lead + (tokens == token).nonzero().squeeze(1) for token in range(TOKENS)]
        keys = [mean(looked.keys[rows].mean(dim=1).tolist()) for rows in members]
        left = naively(attention_naively(looked, tokens), keys, states[torch.stack(members)])
        for token, group in left.items():
            states[members[token]] = group
        with torch.no_grad():
            expected = batched_oracle.features(name, model, found, states)
        assert kept.tolist() == list(left)
        torch.testing.assert_close(ours[kept], expected[kept], **CLOSE)


# Merging


def merging(name: str, policy: Any, fuse: Callable[..., Any], prunes: set[int]) -> batched_oracle.Change:
    """What merges behind the attention of each block. prunes: blocks that drop."""

    def change(where: str, index: int, patches: Patches) -> Patches:
        lead = patches.lead
        unit = SIDES[name] ** 2
        active = (len(patches.places) - lead) // unit
        count = max(policy.kept(TOKENS), math.floor(policy.step * active))
        if where != "attention" or index < policy.start or count >= active:
            return patches
        every = batched_oracle.token_of(name, TOKENS * unit)
        tokens = every[patches.places[lead:]]
        squares = [(lead + (tokens == token).nonzero().squeeze(1)).tolist() for token in tokens.unique().tolist()]
        keys = [mean(patches.keys[rows].mean(dim=1).tolist()) for rows in squares]
        merged = match_naively(keys, active - count)
        states, sizes = fuse(
            [patches.states[rows] for rows in squares], [float(patches.sizes[rows[0]]) for rows in squares], merged
        )
        left = [square for number, square in enumerate(squares) if number not in merged]
        if index in prunes:
            states, sizes = [patches.states[rows] for rows in left], [1.0] * len(left)
        full, counts = patches.states.clone(), patches.sizes.clone()
        for rows, state, size in zip(left, states, sizes, strict=True):
            full[rows], counts[rows] = state, size
        rows = torch.tensor(sorted([*range(lead), *itertools.chain(*left)]))
        return Patches(full[rows], patches.places[rows], counts[rows], patches.queries[rows], patches.keys[rows])

    return change


@each_merging
@pytest.mark.parametrize("name", TOWERS)
def test_merging_in_a_tower_equals_merging_by_hand(name: str, policy: Any, fuse: Any, prunes: set[int]) -> None:
    model = model_of(name)
    assert policy.schedule(TOKENS) == [11, 7, 5]
    features, report = halted(name, model, policy)
    for image, ours, kept in zip(images_of(name), features, report.kept, strict=True):
        with torch.no_grad():
            found = batched_oracle.run(name, model, image, merging(name, policy, fuse, prunes))
            states = batched_oracle.outgoing(name, model, found)
            expected = batched_oracle.features(name, model, found, states)
        tokens = batched_oracle.token_of(name, len(found[0].places) - found[0].lead)
        left = tokens[found[-1].places[found[0].lead :]].unique().tolist()
        assert kept.tolist() == left
        torch.testing.assert_close(ours[kept], expected[kept], **CLOSE)
