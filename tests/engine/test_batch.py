"""A prompt's result does not depend on its batch mates, nor on how much padding stands before it."""

from typing import Any

import pytest
import torch

from deltahalt import (
    BothEnds,
    Dash,
    DashLayer,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Policy,
    Progressive,
    Random,
    Report,
    Uniform,
    WindowAttention,
    halting,
)
from helpers.frozen import frozen, plain
from helpers.oracle import Feed
from helpers.tiny import VARIANTS, VOCAB, prompts, tiny

TOLERANCE = 1e-5
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
POLICIES: dict[str, Policy | Progressive] = {
    "dash": Dash(**HALF),
    "dash-inside": Dash(**HALF, boundary="attention"),
    "dash-layer": DashLayer(**HALF),
    "key-norm": KeyNorm(**HALF),
    "last-token-attention": LastTokenAttention(**HALF),
    "window-attention": WindowAttention(**HALF, window=3),
    "max-sim": MaxSim(**HALF, window=3, kernel=5),
    "both-ends": BothEnds(**HALF, best=2, reach=8),
    "max-sim-inside": MaxSim(**HALF, window=3, kernel=5, boundary="attention"),
    "random": Random(**HALF),
    "uniform": Uniform(**HALF),
    "two-stages": Progressive([KeyNorm(**HALF | {"pruning_ratio": 0.3}), Uniform(**HALF | {"start": 3})]),
}
LENGTHS = (40, 17, 29, 5, 1)
RATIOS = (0.0, 0.1, 0.5, 0.667, 0.99)


def run(model: Any, policy: Policy | Progressive, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    """Logits of a prefill, one step and three tokens in one call, [B, 5, V], and the report of the prefill."""
    more = torch.randint(1, VOCAB, (1, 4), generator=torch.Generator().manual_seed(1)).expand(len(ids), -1)
    with halting(model, policy, **options) as halted:
        feed = Feed(model)
        logits = [feed(ids, mask, logits_to_keep=1), feed(more[:, :1]), feed(more[:, 1:])]
        return torch.cat(logits, dim=1), halted.report


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("variant", ["llama", "qwen2-sliding"])
def test_batch_mates(variant: str, policy: Policy | Progressive) -> None:
    model = tiny(variant)
    ids, mask = prompts(*LENGTHS)
    together, report = run(model, policy, ids, mask)
    for row, length in enumerate(LENGTHS):
        alone, own = run(model, policy, ids[row : row + 1, -length:], mask[row : row + 1, -length:])
        assert torch.equal(report.kept[row], own.kept[0])
        assert (together[row] - alone[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_more_padding(variant: str, attention: str) -> None:
    ids, mask = prompts(40)
    expected, report = run(tiny(variant, attention), Dash(**HALF), ids, mask)
    padding = torch.zeros(1, 11, dtype=torch.long)
    ids, mask = torch.cat([padding, ids], dim=1), torch.cat([padding, mask], dim=1)
    logits, padded = run(tiny(variant, attention), Dash(**HALF), ids, mask)
    assert torch.equal(padded.kept[0], report.kept[0])
    assert (logits - expected).abs().max() < TOLERANCE


def test_what_stands_in_the_padding() -> None:
    model = tiny()
    ids, mask = prompts(40, 29)
    expected, _ = run(model, Dash(**HALF), ids, mask)
    logits, _ = run(model, Dash(**HALF), ids.masked_fill(mask == 0, 77), mask)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
def test_a_short_row_stays_whole_while_its_mate_halts(kept: Any) -> None:
    model = tiny()
    ids, mask = prompts(40, 29)
    _, report = run(model, kept(Dash(**HALF)), ids, mask, min_prompt_tokens=30)
    assert report.lengths[0] == (40, 40, 19, 19, 19, 1)
    assert report.lengths[1] == (29, 29, 29, 29, 29, 1)
    assert report.kept[1].tolist() == list(range(29))


def test_a_row_shorter_than_what_is_protected_stays_whole() -> None:
    model = tiny()
    ids, mask = prompts(40, 5)
    together, report = run(model, Dash(**HALF), ids, mask)
    plain = Feed(model)(ids[1:, -5:])[:, -1]
    assert report.lengths[1] == (5, 5, 5, 5, 5, 1)
    assert (together[1, 0] - plain).abs().max() < TOLERANCE


def prefill(policy: Policy | Progressive, ids: torch.Tensor, mask: torch.Tensor) -> Report:
    model = tiny(num_hidden_layers=4)
    with halting(model, policy) as halted:
        Feed(model)(ids, mask, logits_to_keep=1)
    return halted.report


@pytest.mark.parametrize("kind", [Dash, Uniform, Random, WindowAttention])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_ratio_is_met_exactly_in_every_row(kind: type[Policy], ratio: float) -> None:
    options = {"window": 2, "chunk": 4} if kind is WindowAttention else {}
    policy = kind(start=1, pruning_ratio=ratio, keep_first=3, keep_last=2, **options)
    lengths = tuple(range(1, 60, 2))
    report = prefill(policy, *prompts(*lengths))
    # n - round(c (n - 96)) of the paper's App. A, where 96 tokens are protected
    expected = [length - round(ratio * max(0, length - 5)) for length in lengths]
    assert [len(kept) for kept in report.kept] == expected


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_of_the_prompt_is_met_exactly(ratio: float) -> None:
    policy = Dash(start=1, pruning_ratio=ratio, keep_first=3, keep_last=2, ratio_of="prompt")
    lengths = tuple(range(1, 60, 4))
    report = prefill(policy, *prompts(*lengths))
    # K = floor((1 - rho) T) of the paper's Eq. 3, but never fewer than the protected ones
    expected = [max(min(length, 5), int((1 - ratio) * length)) for length in lengths]
    assert [len(kept) for kept in report.kept] == expected


def test_protected_tokens_are_kept_in_every_row() -> None:
    policy = KeyNorm(start=1, pruning_ratio=0.99, keep_first=4, keep_last=3)
    report = prefill(policy, *prompts(40, 29, 9))
    for kept, length in zip(report.kept, (40, 29, 9), strict=True):
        assert set(kept.tolist()) >= {0, 1, 2, 3, length - 3, length - 2, length - 1}


def test_later_stages_choose_among_tokens_that_are_still_active() -> None:
    policy = Progressive([Random(**HALF | {"pruning_ratio": 0.3}), Dash(**HALF | {"start": 3})])
    _, report = run(tiny(), policy, *prompts(40, 29))
    for early, late in zip(report.stages[0][1], report.stages[1][1], strict=True):
        assert set(late.tolist()) < set(early.tolist())


def test_a_later_stage_that_protects_more_halts_nothing() -> None:
    late = KeyNorm(**HALF | {"start": 3, "keep_first": 12})
    _, report = run(tiny(), Progressive([Dash(**HALF), late]), *prompts(40, 29))
    assert [layer for layer, _ in report.stages] == [1]


def test_a_later_stage_that_protects_halted_tokens_keeps_its_number() -> None:
    late = KeyNorm(start=3, pruning_ratio=0.9, keep_first=12, keep_last=3)
    _, report = run(tiny(), Progressive([Uniform(**HALF), late]), *prompts(40))
    assert len(report.kept[0]) == late.kept(40) < 19
