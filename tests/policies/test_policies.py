"""Each policy's score against a reference written out plainly, and what its own options do."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deltahalt import (
    Dash,
    DashLayer,
    Forecast,
    KeyNorm,
    LastTokenAttention,
    PolicyError,
    Progressive,
    Random,
    SingleInputKV,
    Uniform,
    UnsupportedError,
    WindowAttention,
    halting,
    parse_policy,
)
from deltahalt.engine.decision import Decision
from deltahalt.policies import POLICIES
from deltahalt.policies.base import AnyPolicy, Policy, Stage, place
from helpers.tiny import tiny
from helpers.views import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, attention_matrix, layer_view

SCORING = [policy for name, policy in POLICIES.items() if name != "dense"]


# --- every policy ---


@pytest.mark.parametrize("policy", SCORING)
def test_a_policy_gives_each_token_one_number(policy: type[Policy]) -> None:
    view = layer_view(100, kinds=torch.tensor([0] * 20 + [1] * 30 + [0] * 50), embeddings=torch.rand(100, HIDDEN))
    for stage in policy().stages:
        scores = stage.score(view)
        assert scores.shape == (100,)
        assert scores.isfinite().all()


# --- DASH and its whole-layer variant ---


def norms(rows: torch.Tensor) -> list[float]:
    return [math.sqrt(sum(value * value for value in row)) for row in rows.tolist()]


def test_dash_scores_the_norm_of_the_attention_update() -> None:
    view = layer_view(20)
    assert Dash().score(view).tolist() == pytest.approx(norms(view.update))


def test_dash_layer_scores_the_norm_of_what_the_block_changed() -> None:
    view = layer_view(20)
    assert view.hidden_out is not None
    assert DashLayer().score(view).tolist() == pytest.approx(norms(view.hidden_out - view.hidden_in))


def test_a_relative_update_is_measured_against_what_it_is_added_to() -> None:
    view = layer_view(20)
    expected = [update / state for update, state in zip(norms(view.update), norms(view.hidden_in), strict=True)]
    assert Dash(relative=True).score(view).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("policy", "field"), [(Dash(), "update"), (DashLayer(), "hidden_out")])
def test_norms_of_half_precision_states_do_not_overflow(policy: Policy, field: str) -> None:
    large = torch.full((3, HIDDEN), 60_000.0, dtype=torch.float16)
    states: dict[str, Any] = {"hidden_in": torch.zeros_like(large), field: large}
    view = layer_view(3, **states)
    assert policy.score(view).tolist() == pytest.approx([60_000 * math.sqrt(HIDDEN)] * 3, rel=1e-3)


def test_dash_layer_needs_the_output_of_the_block() -> None:
    with pytest.raises(PolicyError, match='boundary="block"'):
        DashLayer(boundary="attention")


# --- key norm ---


def test_key_norm_scores_minus_the_mean_norm_over_key_heads() -> None:
    view = layer_view(20)
    keys = view.keys()
    heads = [norms(head) for head in keys]
    expected = [-sum(of_token) / KV_HEADS for of_token in zip(*heads, strict=True)]
    assert KeyNorm().score(view).tolist() == pytest.approx(expected)


def test_key_norm_keeps_small_keys() -> None:
    keys = torch.ones(KV_HEADS, 3, HEAD_DIM) * torch.tensor([2.0, 1.0, 3.0])[:, None]
    assert KeyNorm().score(layer_view(3, keys=keys)).argmax() == 1


# --- attention ---


def pool_naively(row: list[float], kernel: int) -> list[float]:
    """Mean over the `kernel` neighbours of each token; beyond either end it counts zeros."""
    half = kernel // 2
    around = [row[max(0, i - half) : i + half + 1] for i in range(len(row))]
    return [sum(near) / kernel for near in around]


def test_last_token_attention_is_the_last_row_of_the_matrix() -> None:
    view = layer_view(40)
    torch.testing.assert_close(LastTokenAttention().score(view), attention_matrix(view)[:, -1].mean(dim=0))


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize(("window", "kernel"), [(4, 1), (4, 5), (7, 3), (1, 9)])
def test_window_attention_is_the_pooled_mean_of_the_last_rows_of_the_matrix(
    window: int, kernel: int, heads: Any
) -> None:
    view = layer_view(40)
    received = attention_matrix(view)[:, -window:].mean(dim=1)  # [heads, n]
    pooled = torch.tensor([pool_naively(row, kernel) for row in received[:, :-window].tolist()])
    expected = pooled.mean(dim=0) if heads == "mean" else pooled.max(dim=0).values
    policy = WindowAttention(window=window, kernel=kernel, heads=heads)
    torch.testing.assert_close(policy.score(view)[:-window], expected)  # the window's own tokens are kept in any case


@pytest.mark.parametrize("prompt", [60, 64, 93])
def test_fastkv_s_token_selection_is_a_setting_of_window_attention(prompt: int) -> None:
    """The one in docs/baselines.md: the last 8 tokens, and the int(0.2 T) - 8 that they attend to most."""
    policy = parse_policy(
        "window-attention:start=15,pruning_ratio=0.8,ratio_of=prompt,keep_first=0,keep_last=8,window=8,kernel=7"
    )
    view = layer_view(prompt)
    received = attention_matrix(view)[:, -8:].sum(dim=(0, 1))[:-8]
    pooled = torch.tensor(pool_naively(received.tolist(), 7))
    best = pooled.topk(int(prompt * 0.2) - 8).indices
    expected = torch.cat([best.sort().values, torch.arange(prompt - 8, prompt)])
    assert isinstance(policy, WindowAttention)
    assert torch.equal(policy.active_set(policy.score(view), view), expected)


@pytest.mark.parametrize(("policy", "window"), [(WindowAttention(window=4), 4), (LastTokenAttention(), 1)])
def test_attention_policies_ask_for_the_queries_of_their_window_only(policy: Policy, window: int) -> None:
    asked: list[int] = []

    def queries(last: int) -> torch.Tensor:
        asked.append(last)
        return torch.ones(HEADS, last, HEAD_DIM)

    policy.score(replace(layer_view(40), queries=queries))
    assert asked == [window]


@pytest.mark.parametrize("policy", [WindowAttention(window=4, kernel=1), LastTokenAttention()])
def test_attention_of_half_precision_states_does_not_overflow(policy: Policy) -> None:
    queries = torch.full((HEADS, 10, HEAD_DIM), 100.0, dtype=torch.float16)
    keys = torch.full((KV_HEADS, 10, HEAD_DIM), 100.0, dtype=torch.float16)  # q.k is 80,000, beyond float16
    scores = policy.score(layer_view(10, queries=queries, keys=keys))
    assert scores[:6].tolist() == pytest.approx([scores[0].item()] * 6)


@pytest.mark.parametrize("policy", [WindowAttention(window=4), LastTokenAttention()])
def test_attention_policies_refuse_a_layer_that_does_not_see_the_whole_prompt(policy: Policy) -> None:
    with pytest.raises(UnsupportedError, match="layer 3 attends over the last 39 tokens"):
        policy.score(layer_view(40, window=39))


def test_a_sliding_layer_that_sees_the_whole_prompt_scores_it() -> None:
    policy, view = WindowAttention(window=4), layer_view(40)
    assert policy.score(replace(view, window=40)).equal(policy.score(view))


def test_the_refusal_counts_the_prompt_and_not_the_tokens_left_of_it() -> None:
    view = layer_view(40, positions=torch.arange(0, 40, 4), window=20)
    with pytest.raises(UnsupportedError, match="a prompt of 40"):
        LastTokenAttention().score(view)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("window", 0),
        ("window", 5),
        ("kernel", 0),
        ("kernel", 4),
        ("kernel", -1),
        ("layers", 0),
        ("ahead", -1),
        ("chunk", 0),
        ("heads", "sum"),
    ],
)
def test_window_attention_refuses_settings_out_of_range(option: str, value: Any) -> None:
    settings: dict[str, Any] = {"window": 4, "keep_last": 4} | {option: value}
    with pytest.raises(PolicyError, match=f"{option} is {value!r}"):
        WindowAttention(**settings)


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_of_several_layers_are_summed(layers: int) -> None:
    policy = WindowAttention(window=4, layers=layers)
    views = [layer_view(40, seed=seed) for seed in range(layers)]
    decision = Decision(Stage((policy,), first=0, last=layers - 1), rows={0: (policy,)})
    for view in views:
        decision.observe({0: view}.__getitem__)
    torch.testing.assert_close(
        decision.scores[0, "all"], torch.stack([policy.score(view) for view in views]).sum(dim=0)
    )


def test_a_look_ahead_takes_in_what_deeper_layers_that_see_all_would_score() -> None:
    deeper = [layer_view(60, seed=1), layer_view(60, seed=2, window=10), layer_view(60, seed=3)]
    view = layer_view(60, lookahead=lambda _: iter(deeper))
    near, far = WindowAttention(ahead=1), WindowAttention(ahead=4)
    alone = [WindowAttention().score(layer_view(60, seed=seed)) for seed in (0, 1, 3)]
    assert torch.allclose(near.score(view), alone[0] + alone[1])
    assert torch.allclose(far.score(view), sum(alone))
    highest = WindowAttention(ahead=4, across="max")
    assert torch.allclose(highest.score(view), torch.stack(alone).amax(dim=0))


# --- chunks ---


def test_the_best_chunks_stay_whole() -> None:
    scores = torch.tensor([0.0, 0, 0, 9, 3, 3, 3, 3, 2, 2, 2, 2])  # means 2.25, 3, 2
    assert WindowAttention(chunk=4).select(scores, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_chunk_is_cut_from_its_end_to_meet_the_count() -> None:
    scores = torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 9])
    assert WindowAttention(chunk=4).select(scores, 6).tolist() == [4, 5, 8, 9, 10, 11]


def test_a_short_last_chunk_is_averaged_over_its_own_tokens() -> None:
    scores = torch.tensor([2.0, 2, 2, 2, 1, 1, 1, 1, 3, 3])
    assert WindowAttention(chunk=4).select(scores, 2).tolist() == [8, 9]


def test_every_signal_can_keep_whole_chunks() -> None:
    view = layer_view(104, update=torch.repeat_interleave(torch.rand(13, 1), 8, dim=0) * torch.rand(104, HIDDEN))
    policy = Dash(chunk=8, pruning_ratio=0.5, keep_first=4, keep_last=4)
    kept = policy.active_set(policy.score(view), view)
    eligible = [token - 4 for token in kept.tolist() if 4 <= token < 100]
    whole = [chunk for chunk in range(12) if all(8 * chunk + token in eligible for token in range(8))]
    assert len(whole) == 6
    assert len(eligible) == 48


# --- random and uniform ---


def test_random_repeats_itself_for_a_seed() -> None:
    assert Random(seed=1).score(layer_view(50, seed=2)).equal(Random(seed=1).score(layer_view(50, seed=3)))


def test_random_differs_between_seeds() -> None:
    view = layer_view(50)
    assert not Random(seed=1).score(view).equal(Random(seed=2).score(view))


def test_random_leaves_torch_s_own_generator_alone() -> None:
    before = torch.get_rng_state()
    Random().score(layer_view(50))
    assert torch.get_rng_state().equal(before)


def test_random_draws_the_same_under_another_default_device() -> None:
    view = layer_view(50)
    with torch.device("meta"):
        scores = Random().score(view)
    assert scores.equal(Random().score(view))


@pytest.mark.parametrize(("tokens", "count"), [(10, 1), (10, 3), (10, 9), (10, 10), (101, 7), (100, 50), (64, 63)])
def test_uniform_keeps_tokens_at_even_distances(tokens: int, count: int) -> None:
    kept = Uniform().select(torch.zeros(tokens), count).tolist()
    distances = {later - earlier for earlier, later in itertools.pairwise(kept)}
    assert len(kept) == count
    assert distances <= {tokens // count, tokens // count + 1}


@pytest.mark.parametrize(("tokens", "count"), [(10, 1), (10, 3), (101, 7), (1_000, 9)])
def test_uniform_leaves_as_much_before_the_first_token_as_after_the_last(tokens: int, count: int) -> None:
    kept = Uniform().select(torch.zeros(tokens), count).tolist()
    assert abs(kept[0] - (tokens - 1 - kept[-1])) <= 1


def test_uniform_of_nothing_is_nothing() -> None:
    assert Uniform().select(torch.zeros(10), 0).tolist() == []
    assert Uniform(chunk=4).select(torch.zeros(10), 0).tolist() == []


@pytest.mark.parametrize(("tokens", "count", "chunk"), [(640, 320, 64), (1_000, 430, 64), (65, 2, 64), (130, 129, 64)])
def test_uniform_keeps_whole_chunks_at_even_distances(tokens: int, count: int, chunk: int) -> None:
    kept = Uniform(chunk=chunk).select(torch.zeros(tokens), count).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == count
    touched = sorted({token // chunk for token in kept})
    cut = [at for at in touched if not set(range(at * chunk, min((at + 1) * chunk, tokens))) <= set(kept)]
    assert len(cut) <= 1
    distances = {later - earlier for earlier, later in itertools.pairwise(touched)}
    assert not distances or max(distances) - min(distances) <= 1


def test_random_keeps_whole_chunks() -> None:
    policy = Random(chunk=64)
    kept = policy.select(policy.score(layer_view(640)), 320).tolist()
    assert {token // 64 for token in kept} == {chunk for chunk in range(10) if chunk * 64 in kept}
    assert len({token // 64 for token in kept}) == 5


@pytest.mark.parametrize("option", [{"keep_first": 4}, {"scope": "text"}, {"chunk": 16}])
def test_an_exit_leaves_no_active_token_before_a_halted_one(option: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="keeps the last tokens of the whole prompt"):
        SingleInputKV(**option)


@pytest.mark.parametrize(
    "policy",
    [Forecast(start=2, keep_last=7), Progressive([Dash(start=1, keep_last=7), Forecast(start=2, keep_last=8)])],
    ids=["alone", "behind another"],
)
def test_a_forecast_from_too_few_tokens_is_refused(policy: AnyPolicy) -> None:
    with pytest.raises(PolicyError, match=r"here 7.*set keep_last=8 or more"):
        place(policy, 6)


def test_an_exit_needs_a_cache_to_serve_from() -> None:
    model = tiny()
    with halting(model, SingleInputKV(start=1, keep_last=4)), pytest.raises(UnsupportedError, match="use_cache"):
        model(input_ids=torch.arange(1, 41)[None], use_cache=False, logits_to_keep=1)
