"""A halted run equals a full-length run of the stock model whose deeper layers may not read halted tokens."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import (
    BothEnds,
    Dash,
    DashLayer,
    Forecast,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Policy,
    Progressive,
    Random,
    SingleInputKV,
    Uniform,
    WindowAttention,
    halting,
)
from deltahalt.policies.forecast import Predicted
from helpers.frozen import frozen, plain
from helpers.oracle import Feed, Oracle, oracle_for
from helpers.tiny import FULL, FULL_VARIANTS, LAYERS, SLIDING_VARIANTS, VARIANTS, VOCAB, WINDOW, prompts, tiny

TOLERANCE = 1e-5
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
POLICIES = {
    "dash": Dash(**HALF),
    "dash-layer": DashLayer(**HALF),
    "key-norm": KeyNorm(**HALF),
    "last-token-attention": LastTokenAttention(**HALF),
    "window-attention": WindowAttention(**HALF, window=3),
    "window-attention-2-layers": WindowAttention(**HALF | {"start": 2}, window=3, layers=2, chunk=3),
    "max-sim": MaxSim(**HALF, window=3, kernel=5),
    "both-ends": BothEnds(**HALF, best=2, reach=8),
    "attention-and-max-sim": WindowAttention(**HALF, window=3, similar=1.0),
    "random": Random(**HALF),
    "uniform": Uniform(**HALF),
}
PIECES = pytest.mark.parametrize("pieces", [None, 5], ids=["whole", "pieces"])
TWO_STAGES = Progressive(
    [
        KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
        Dash(start=3, pruning_ratio=0.7, keep_first=1, keep_last=3, boundary="attention"),
    ]
)


def gap(
    variant: str,
    attention: str,
    policy: Policy | Progressive,
    lengths: tuple[int, ...],
    cache: DynamicCache | None = None,
    **options: Any,
) -> float:
    """Largest difference of any logit between engine and oracle: prefill, single steps, several tokens in one call."""
    model = tiny(variant, attention)
    ids, mask = prompts(*lengths)
    more = torch.randint(1, VOCAB, (len(lengths), 9), generator=torch.Generator().manual_seed(1))
    calls = [(ids, mask), (more[:, :1], None), (more[:, 1:2], None), (more[:, 2:8], None), (more[:, 8:], None)]
    with halting(model, policy, **options) as halted:
        feed = Feed(model, cache)
        ours = [feed(*call, logits_to_keep=0 if number else 1) for number, call in enumerate(calls)]
    assert halted.report.stages
    again = tiny(variant, attention)  # a new one: dynamic RoPE remembers the longest input
    oracle = oracle_for(again, VARIANTS[variant].windows, policy, halted.report)
    theirs = [oracle(*call)[:, -logits.shape[1] :] for call, logits in zip(calls, ours, strict=True)]
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@PIECES
@pytest.mark.parametrize("boundary", ["block", "attention"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_with_padding(variant: str, attention: str, boundary: Any, pieces: int | None) -> None:
    assert gap(variant, attention, Dash(**HALF, boundary=boundary), (40, 29), piece_tokens=pieces) < TOLERANCE


@PIECES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_alone(variant: str, attention: str, pieces: int | None) -> None:
    """One prompt without padding: the mask is left out wherever the host allows it."""
    assert gap(variant, attention, Dash(**HALF), (40,), piece_tokens=pieces) < TOLERANCE


@PIECES
@pytest.mark.parametrize("lengths", [(40,), (40, 29)], ids=str)
@pytest.mark.parametrize("variant", ["llama", "gemma3", "qwen2-sliding"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(policy: str, variant: str, lengths: tuple[int, ...], pieces: int | None) -> None:
    assert gap(variant, "sdpa", POLICIES[policy], lengths, piece_tokens=pieces) < TOLERANCE


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_in_float64(policy: str) -> None:
    model = tiny().double()
    ids, mask = prompts(40, 29)
    with halting(model, POLICIES[policy]) as halted:
        logits = Feed(model)(ids, mask, logits_to_keep=1)
    assert logits.dtype == torch.float64
    oracle = Oracle(tiny().double(), FULL, halted.report)
    assert (oracle(ids, mask)[:, -1:] - logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("start", [0, LAYERS - 2])
def test_first_and_last_start_layer(start: int) -> None:
    assert gap("llama", "sdpa", KeyNorm(start=start, keep_first=0, keep_last=1), (40, 29)) < TOLERANCE


@PIECES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_stages(variant: str, attention: str, pieces: int | None) -> None:
    assert gap(variant, attention, TWO_STAGES, (40, 29), piece_tokens=pieces) < TOLERANCE


@PIECES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "policy", [Dash(**HALF), Dash(**HALF, boundary="attention"), TWO_STAGES], ids=["block", "attention", "two"]
)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_frozen_kv(variant: str, policy: Policy | Progressive, attention: str, pieces: int | None) -> None:
    assert gap(variant, attention, frozen(policy), (40, 29), piece_tokens=pieces) < TOLERANCE


EXIT = SingleInputKV(start=3, keep_last=4)
EXITS = {
    "alone": EXIT,
    "inside": SingleInputKV(start=3, keep_last=4, boundary="attention"),
    "behind another": Progressive([Dash(**HALF), EXIT]),
    "in two steps": Progressive([SingleInputKV(start=1, keep_last=4, pruning_ratio=0.5), EXIT]),
}


@PIECES
@pytest.mark.parametrize("lengths", [(40,), (40, 29), (40, 4)], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("exit_", EXITS)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_an_exit_reads_the_prompt_from_where_it_stopped(
    variant: str, exit_: str, attention: str, lengths: tuple[int, ...], pieces: int | None
) -> None:
    assert gap(variant, attention, EXITS[exit_], lengths, piece_tokens=pieces) < TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Penalized(Forecast):
    """A forecast by a regression with another penalty."""

    ridge: float

    @property
    def halted_states(self) -> Predicted:
        return Predicted(penalty=self.ridge, in_order=True)


TOLD = Forecast(start=2, keep_last=9)
FORECASTS = {
    "alone": TOLD,
    "inside": Penalized(start=2, keep_last=9, ridge=1.0, boundary="attention"),
    "behind another": Progressive([Dash(**HALF | {"keep_last": 12}), TOLD]),
    "in two steps": Progressive([Penalized(start=1, keep_last=9, pruning_ratio=0.5, ridge=0.02), TOLD]),
    "behind a shorter end": Progressive([Dash(**HALF | {"keep_last": 8}), TOLD]),
    "before a shorter end": Progressive([Forecast(start=1, keep_last=12, pruning_ratio=0.5), TOLD]),
}


@PIECES
@pytest.mark.parametrize("lengths", [(40,), (40, 29), (40, 8)], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_a_forecast_reads_the_prompt_as_a_regression_tells_it(
    variant: str, forecast: str, attention: str, lengths: tuple[int, ...], pieces: int | None
) -> None:
    assert gap(variant, attention, FORECASTS[forecast], lengths, piece_tokens=pieces) < TOLERANCE


@PIECES
@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
def test_a_row_that_halts_nothing_beside_one_that_does(kept: Any, pieces: int | None) -> None:
    assert gap("llama", "sdpa", kept(Dash(**HALF)), (40, 5), piece_tokens=pieces) < TOLERANCE


@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
@pytest.mark.parametrize("policy", [Dash(**HALF), TWO_STAGES], ids=["one", "two"])
def test_the_longest_row_becomes_the_shortest(policy: Policy | Progressive, kept: Any) -> None:
    """A row without padding gets some, since its mate is too short to halt anything."""
    assert gap("llama", "sdpa", kept(policy), (40, 29), min_prompt_tokens=30) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
def test_rows_that_keep_as_many_tokens_and_halt_not_as_many(kept: Any, attention: str) -> None:
    policy = Dash(**HALF)
    assert policy.kept(40) == policy.kept(39)  # so only the shallow layers, and frozen K/V, are padded
    assert gap("llama", attention, kept(policy), (40, 39)) < TOLERANCE


@PIECES
@pytest.mark.parametrize("lengths", [(WINDOW - 3,), (WINDOW,), (WINDOW + 2, WINDOW - 1)], ids=str)
@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_prompts_that_outgrow_the_window_while_decoding(
    variant: str, lengths: tuple[int, ...], pieces: int | None
) -> None:
    policy = KeyNorm(start=1, pruning_ratio=0.9, keep_first=0, keep_last=1)
    assert gap(variant, "sdpa", policy, lengths, piece_tokens=pieces) < TOLERANCE


@PIECES
@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_a_cache_that_stores_more_than_the_window(variant: str, pieces: int | None) -> None:
    cache = DynamicCache()  # made without a config, it does not know of windows
    assert gap(variant, "sdpa", Dash(**HALF), (40, 29), cache, piece_tokens=pieces) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(40, 29), (40, 40)], ids=str)
@pytest.mark.parametrize("variant", ["llama", "gemma3", "mistral-sliding"])
def test_a_continuation_that_is_padded_itself(variant: str, lengths: tuple[int, ...], attention: str) -> None:
    model = tiny(variant, attention)
    calls = [prompts(*lengths), prompts(3, 2, seed=1), prompts(1, 1, seed=2), prompts(2, 4, seed=3)]
    with halting(model, Dash(**HALF)) as halted:
        feed = Feed(model)
        ours = [feed(*call, logits_to_keep=1) for call in calls]
    oracle = Oracle(model, VARIANTS[variant].windows, halted.report)
    theirs = [oracle(*call)[:, -1:] for call in calls]
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_without_a_cache(variant: str) -> None:
    model = tiny(variant)
    ids, mask = prompts(40, 29)
    with halting(model, Dash(**HALF)) as halted, torch.no_grad():
        logits = model(ids, mask, use_cache=False, logits_to_keep=1).logits
    oracle = Oracle(model, VARIANTS[variant].windows, halted.report)
    assert (oracle(ids, mask)[:, -1:] - logits).abs().max() < TOLERANCE


def test_several_logits_of_a_prefill() -> None:
    """As many as there are tokens at the end that every layer keeps."""
    model = tiny()
    ids, mask = prompts(40, 29)
    with halting(model, Dash(**HALF)) as halted:
        logits = Feed(model)(ids, mask, logits_to_keep=3)
    oracle = Oracle(model, FULL, halted.report)
    assert (oracle(ids, mask)[:, -3:] - logits).abs().max() < TOLERANCE


def test_the_oracle_notices_one_wrong_token() -> None:
    model = tiny()
    ids, mask = prompts(40)
    with halting(model, Dash(**HALF)) as halted:
        logits = Feed(model)(ids, mask, logits_to_keep=1)[:, -1]
    report = halted.report
    kept = report.kept[0]
    stranger = next(position for position in range(20, 40) if position not in kept)
    wrong = torch.cat([kept[kept != kept[10]], torch.tensor([stranger])])
    oracle = Oracle(model, FULL, replace(report, stages=((1, (wrong,)),)))
    assert (oracle(ids, mask)[:, -1] - logits).abs().max() > 1000 * TOLERANCE


# A window so wide that it shows whether its tokens see each other, and no pooling that would blur it.
WIDE: dict[str, Any] = {"pruning_ratio": 0.5, "keep_first": 2, "keep_last": 12, "window": 12, "kernel": 1}


def stock_scores(name: str, model: Any, layer: int, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores [B, T] of a policy at one layer, from what the stock model lets one see."""
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[layer]
    hooks = [
        block.register_forward_hook(lambda _, args, output: seen.update(before=args[0], after=output)),
        block.self_attn.register_forward_hook(lambda _, args, output: seen.update(update=output[0])),
        block.self_attn.register_forward_hook(lambda _, args, output: seen.update(weights=output[1])),
    ]
    feed = Feed(model)
    feed(ids, mask)
    for hook in hooks:
        hook.remove()
    if name == "dash":
        return seen["update"].norm(dim=-1)
    if name == "dash-layer":
        return (seen["after"] - seen["before"]).norm(dim=-1)
    if name == "key-norm":
        return -feed.cache.layers[layer].keys.norm(dim=-1).mean(dim=1)
    if name == "last-token-attention":
        return seen["weights"][:, :, -1].mean(dim=1)
    return seen["weights"][:, :, -WIDE["window"] :].mean(dim=(1, 2))


def best_of(scores: torch.Tensor, policy: Policy) -> list[int]:
    """The tokens that stay active, of which those at either end are given."""
    first, last, length = policy.keep_first, len(scores) - policy.keep_last, len(scores)
    best = scores[first:last].topk(policy.kept(length) - first - policy.keep_last).indices + first
    return sorted([*range(first), *best.tolist(), *range(last, length)])


@pytest.mark.parametrize("lengths", [(40, 29), (29, 40)], ids=str)
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "mistral", "phi3-partial", "gemma3"])
@pytest.mark.parametrize("name", ["dash", "dash-layer", "key-norm", "last-token-attention", "window-attention"])
def test_the_kept_tokens_are_the_best_of_the_stock_model(name: str, variant: str, lengths: tuple[int, ...]) -> None:
    model = tiny(variant, "eager")
    ids, mask = prompts(*lengths)
    policy = WindowAttention(start=1, **WIDE) if name == "window-attention" else POLICIES[name]
    with halting(model, policy) as halted:
        Feed(model)(ids, mask, logits_to_keep=1)
    scores = stock_scores(name, model, 1, ids, mask)
    for row, length in enumerate(lengths):
        assert halted.report.kept[row].tolist() == best_of(scores[row, 40 - length :], policy)


def test_the_kept_tokens_are_the_best_by_the_sum_of_two_layers() -> None:
    model = tiny("llama", "eager")
    ids, mask = prompts(40)
    policy = WindowAttention(start=3, layers=2, **WIDE)
    with halting(model, policy) as halted:
        Feed(model)(ids, mask, logits_to_keep=1)
    scores = sum(stock_scores("window-attention", model, layer, ids, mask) for layer in (2, 3))
    assert halted.report.kept[0].tolist() == best_of(scores[0], policy)
