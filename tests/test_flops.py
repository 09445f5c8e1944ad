"""The two cost models: the paper's printed figures, and every matrix product counted one by one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from deltahalt import (
    Dash,
    DashFrozen,
    Dense,
    Forecast,
    InputError,
    KeyNorm,
    Progressive,
    SingleInputKV,
    UnsupportedError,
    WindowAttention,
    halting,
)
from deltahalt.engine.report import Report
from deltahalt.flops import (
    KNOWN_SHAPES,
    LayerLoad,
    ModelShape,
    Savings,
    dense_loads,
    paper_flops,
    policy_loads,
    savings,
    true_flops,
)
from deltahalt.policies.base import AnyPolicy
from helpers.tiny import tiny

QWEN_7B = KNOWN_SHAPES["qwen2.5-7b"]
SMALL = ModelShape(layers=1, hidden=16, intermediate=40, heads=4, kv_heads=2, head_dim=8)


# --- the paper's Table 3 ---


@pytest.mark.parametrize(
    ("tokens", "kept", "reduction", "paper_speedup"),
    [
        (8_192, 2_792, "43.28%", "1.76"),
        (16_384, 5_520, "45.49%", "1.83"),
        (32_768, 10_976, "47.90%", "1.92"),
        (65_536, 21_888, "50.09%", "2.00"),
        (131_072, 43_711, "51.72%", "2.07"),
    ],
)
def test_table_3_of_the_paper(tokens: int, kept: int, reduction: str, paper_speedup: str) -> None:
    saved = savings(QWEN_7B, Dash(), tokens)
    assert (saved.prompt, saved.kept) == (tokens, kept)
    assert f"{saved.paper_reduction:.2%}" == reduction
    assert f"{saved.paper_speedup:.2f}" == paper_speedup


def test_the_proxy_is_eq_4() -> None:
    d, m, n = 16, 40, 10
    assert paper_flops(SMALL, dense_loads(1, n)) == 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


# --- true speedups ---


@pytest.mark.parametrize(
    ("tokens", "bound"),
    [(4_096, 1.61), (8_192, 1.64), (16_384, 1.68), (32_768, 1.73), (65_536, 1.80), (131_072, 1.87)],
)
def test_true_speedup_of_dash_by_prompt_length(tokens: int, bound: float) -> None:
    assert round(savings(QWEN_7B, Dash(), tokens).true_speedup, 2) == bound


@pytest.mark.parametrize(
    ("schedule", "at_16k", "at_131k"),
    [
        ([(14, 0.667)], 1.49, 1.61),
        ([(14, 0.9)], 1.74, 1.80),
        ([(7, 0.5), (14, 0.9)], 2.28, 2.58),
        ([(4, 0.5), (14, 0.9)], 2.63, 3.16),
        ([(3, 0.667), (14, 0.9)], 3.36, 4.27),
    ],
)
def test_true_speedup_of_schedules(schedule: list[tuple[int, float]], at_16k: float, at_131k: float) -> None:
    policy = Progressive([Dash(start=layer, pruning_ratio=ratio) for layer, ratio in schedule])
    bounds = [round(savings(QWEN_7B, policy, tokens).true_speedup, 2) for tokens in (16_384, 131_072)]
    assert bounds == [at_16k, at_131k]


def test_reduction_and_speedup_say_the_same() -> None:
    saved = savings(QWEN_7B, Dash(), 16_384)
    assert saved.paper_reduction == pytest.approx(1 - 1 / saved.paper_speedup)
    assert saved.true_reduction == pytest.approx(1 - 1 / saved.true_speedup)


def test_dense_saves_nothing() -> None:
    assert savings(QWEN_7B, Dense(), 1_000) == Savings(1_000, 1_000, 0, 1, 0, 1)


# --- loads of a policy ---

HALVE: dict[str, Any] = {"pruning_ratio": 0.5, "keep_first": 0, "keep_last": 1}  # of 101 tokens, 51 stay


def test_the_deciding_layer_runs_in_full() -> None:
    loads = policy_loads(Dash(start=1, **HALVE), 4, 101)
    assert loads == [LayerLoad(101, 101), LayerLoad(101, 101), LayerLoad(51, 51), LayerLoad(51, 51)]


def test_the_paper_s_deciding_layer_runs_on_the_kept_tokens() -> None:
    loads = policy_loads(Dash(start=1, **HALVE), 4, 101, paper=True)
    assert loads == [LayerLoad(101, 101), LayerLoad(51, 51), LayerLoad(51, 51), LayerLoad(51, 51)]


def test_halting_after_attention_spares_the_deciding_layer_s_ffn() -> None:
    loads = policy_loads(Dash(start=1, boundary="attention", **HALVE), 4, 101)
    assert loads == [LayerLoad(101, 101), LayerLoad(101, 51), LayerLoad(51, 51), LayerLoad(51, 51)]


def test_each_stage_takes_its_share_of_the_whole_prompt() -> None:
    policy = Progressive([Dash(start=1, **HALVE), Dash(start=2, **HALVE | {"pruning_ratio": 0.9})])
    assert [load.attended for load in policy_loads(policy, 4, 101)] == [101, 101, 51, 11]


def test_the_full_model_runs_every_token_through_every_layer() -> None:
    assert policy_loads(Dense(), 4, 101) == dense_loads(4, 101)


@pytest.mark.parametrize(
    "policy",
    [
        Dash(start=1, **HALVE),
        Dash(start=1, boundary="attention", **HALVE),
        Progressive([Dash(start=1, **HALVE), Dash(start=3, **HALVE | {"pruning_ratio": 0.9})]),
        WindowAttention(start=2, window=1, layers=2, ahead=3, **HALVE),
        SingleInputKV(start=2, keep_last=8),
        Forecast(start=2, keep_last=8),
        Progressive([Dash(start=1, **HALVE | {"keep_last": 9}), Forecast(start=2, keep_last=11)]),
        Progressive([KeyNorm(start=1, pruning_ratio=0.0, keep_last=8), Forecast(start=2, keep_last=8)]),
        Dense(),
    ],
    ids=[
        "block",
        "attention",
        "two-stages",
        "look-ahead",
        "exit",
        "forecast",
        "forecast-behind",
        "forecast-behind-nothing",
        "dense",
    ],
)
def test_loads_are_those_that_the_engine_reports(policy: AnyPolicy) -> None:
    model, prompt = tiny(), torch.arange(1, 102)[None]
    with torch.no_grad(), halting(model, policy) as halted:
        model.get_decoder()(prompt)  # all final states may be read, so every active token runs through the last layer
    assert list(halted.report.loads[0]) == policy_loads(policy, model.config.num_hidden_layers, 101)


def test_a_look_ahead_costs_keys_and_values_of_each_layer_looked_at() -> None:
    loads = policy_loads(WindowAttention(start=1, window=1, ahead=9, **HALVE), 4, 101)
    assert [load.lookahead_tokens for load in loads] == [0, 2 * 101, 0, 0]
    blind = policy_loads(WindowAttention(start=1, window=1, **HALVE), 4, 101)
    extra = true_flops(SMALL, loads, 101) - true_flops(SMALL, blind, 101)
    assert extra == 2 * 2 * (2 * 101 * SMALL.hidden * SMALL.kv_heads * SMALL.head_dim)


def test_frozen_tokens_cost_extra_only_below_the_layer_that_halts_them() -> None:
    model, prompt = tiny(), torch.arange(1, 102)[None]
    with torch.no_grad(), halting(model, DashFrozen(start=1, **HALVE)) as halted:
        model.get_decoder()(prompt)
    assert [load.kv_only_tokens for load in halted.report.loads[0]] == [0, 0, 50, 50, 50, 50]


def test_a_forecast_costs_a_product_of_halted_and_running_tokens_where_they_stop_and_in_each_deeper_layer() -> None:
    loads = policy_loads(Forecast(start=1, keep_last=11), 4, 101)
    assert [load.regressed_pairs for load in loads] == [0, 90 * 11, 90 * 11, 90 * 11]
    plain = policy_loads(SingleInputKV(start=1, keep_last=11), 4, 101)
    assert true_flops(SMALL, loads, 101) - true_flops(SMALL, plain, 101) == 3 * 2 * (90 * 11) * SMALL.hidden


# --- matrix products one by one ---


def naive_flops(shape: ModelShape, load: LayerLoad, pairs: int) -> int:
    """One layer: two FLOPs for each multiply-add; `pairs` of a query and a key that it may see."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    held = load.attended + load.kv_only_tokens
    multiply_adds = [
        load.attended * hidden * queries,  # q
        held * hidden * keys,  # k
        held * hidden * keys,  # v
        pairs * queries,  # q.k in every head
        pairs * queries,  # weights times v in every head
        load.attended * queries * hidden,  # o
        load.ffn_tokens * hidden * shape.intermediate,  # gate
        load.ffn_tokens * hidden * shape.intermediate,  # up
        load.ffn_tokens * shape.intermediate * hidden,  # down
    ]
    return 2 * sum(multiply_adds)


def count_pairs(readers: list[int], read: list[int], window: int | None = None) -> int:
    """Query-key pairs, tried one by one: a key is seen from its own position on, and within the window."""
    return sum(key <= query and (window is None or query - key < window) for query in readers for key in read)


def model_pairs(load: LayerLoad, *, window: int | None = None, prompt: int) -> float:
    """The query-key pairs in what true_flops gives for one layer."""
    total = true_flops(replace(SMALL, windows=(window,)), [load], prompt)
    return (total - naive_flops(SMALL, load, pairs=0)) / (4 * SMALL.heads * SMALL.head_dim)


@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_a_full_layer_is_counted_exactly(tokens: int) -> None:
    load = LayerLoad(tokens, tokens)
    pairs = count_pairs(list(range(tokens)), list(range(tokens)))
    assert true_flops(SMALL, [load], tokens) == naive_flops(SMALL, load, pairs)


def test_a_layer_that_halts_after_its_attention_is_counted_exactly() -> None:
    load = LayerLoad(attended=33, ffn_tokens=12)
    pairs = count_pairs(list(range(33)), list(range(33)))
    assert true_flops(SMALL, [load], 33) == naive_flops(SMALL, load, pairs)


@pytest.mark.parametrize("window", [1, 5, 32, 33, 34, 1_000])
def test_a_sliding_window_over_a_full_prompt_is_counted_exactly(window: int) -> None:
    tokens = list(range(33))
    assert model_pairs(LayerLoad(33, 33), window=window, prompt=33) == count_pairs(tokens, tokens, window)


@pytest.mark.parametrize("window", [8, 40, 199, 200])
@pytest.mark.parametrize("step", [2, 5, 50])
def test_a_sliding_window_over_evenly_kept_tokens_is_counted_closely(window: int, step: int) -> None:
    kept = list(range(step - 1, 200, step))
    pairs = model_pairs(LayerLoad(len(kept), len(kept)), window=window, prompt=200)
    assert pairs == pytest.approx(count_pairs(kept, kept, window), rel=0.03)


@pytest.mark.parametrize("step", [2, 5])
def test_frozen_tokens_between_the_kept_ones_are_counted_closely(step: int) -> None:
    kept = list(range(step - 1, 200, step))
    load = LayerLoad(len(kept), len(kept), kv_only_tokens=200 - len(kept))
    assert model_pairs(load, prompt=200) == pytest.approx(count_pairs(kept, list(range(200))), rel=0.03)


def test_layers_are_counted_with_their_own_windows() -> None:
    both = replace(SMALL, layers=2, windows=(None, 5))
    each = [true_flops(replace(SMALL, windows=(window,)), [LayerLoad(33, 33)], 33) for window in (None, 5)]
    assert true_flops(both, dense_loads(2, 33), 33) == sum(each)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3-full"])
def test_the_count_agrees_with_what_torch_counts_in_the_host_s_layers(family: str) -> None:
    model, tokens = tiny(family, "eager"), 20
    shape = ModelShape.of(model.config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(1, tokens + 1)[None])
    layers = [module for module in counter.get_flop_counts() if module.split(".")[-2:-1] == ["layers"]]
    counted = sum(sum(counter.get_flop_counts()[module].values()) for module in layers)
    unseen = shape.layers * 4 * shape.heads * shape.head_dim * tokens * (tokens - 1) // 2  # eager multiplies them too
    assert len(layers) == shape.layers
    assert true_flops(shape, dense_loads(shape.layers, tokens), tokens) == counted - unseen


# --- a report's totals ---


def report(*prompts: tuple[LayerLoad, ...]) -> Report:
    return Report(
        shape=SMALL,
        prompts=tuple(loads[0].attended for loads in prompts),
        stages=(),
        scores=(),
        loads=prompts,
        cache_bytes=0,
        full_cache_bytes=0,
        seconds=None,
    )


def test_a_report_adds_up_its_prompts() -> None:
    one, other = (LayerLoad(33, 12),), (LayerLoad(20, 20),)
    both = report(one, other)
    assert both.flops == report(one).flops + report(other).flops
    assert both.full_flops == report(one).full_flops + report(other).full_flops


def test_the_speedup_bound_is_full_over_halted() -> None:
    halted = report((LayerLoad(33, 12),))
    full = true_flops(SMALL, [LayerLoad(33, 33)], 33)
    assert halted.speedup_bound == full / true_flops(SMALL, [LayerLoad(33, 12)], 33)


# --- shapes ---


def test_a_shape_is_known_by_name() -> None:
    assert ModelShape.parse("qwen2.5-7b") == ModelShape(28, 3584, 18944, 28, 4, 128)


def test_a_shape_is_read_from_six_numbers() -> None:
    assert ModelShape.parse("28, 3584, 18944, 28, 4, 128") == QWEN_7B


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt-5",
        "1,2,3",
        "1,2,3,4,5,6,7",
        "1,2,3,4,5,-6",
        "1,2,3,4,5,0",
        "1,2,3,4,5,x",
        "1,2,3,4,5,²",
        "1,2,,4,5,6",
    ],
)
def test_anything_else_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(InputError, match=r"smollm2-135m.*qwen2.5-7b.* nor six positive numbers"):
        ModelShape.parse(text)


SIZES: dict[str, Any] = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("config", "head_dim", "windows"),
    [
        (LlamaConfig(**SIZES), 16, [None] * 6),
        (LlamaConfig(**SIZES, head_dim=24), 24, [None] * 6),
        (Qwen2Config(**SIZES), 16, [None] * 6),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=4),
            16,
            [None, None, None, None, 8, 8],
        ),
        (Qwen3Config(**SIZES, head_dim=24), 24, [None] * 6),
        (MistralConfig(**SIZES, sliding_window=8), 16, [8] * 6),
        (Phi3Config(**SIZES, sliding_window=None, pad_token_id=0), 16, [None] * 6),
        (
            Gemma3TextConfig(
                **SIZES,
                head_dim=24,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"] * 3,
            ),
            24,
            [8, None] * 3,
        ),
    ],
    ids=["llama", "llama-head-dim", "qwen2", "qwen2-sliding", "qwen3", "mistral", "phi3", "gemma3"],
)
def test_a_shape_is_read_from_a_configuration(config: Any, head_dim: int, windows: list[int | None]) -> None:
    shape = ModelShape.of(config)
    assert shape == ModelShape(6, 64, 96, 4, 2, head_dim, tuple(windows))


def test_a_shape_without_windows_attends_all_the_way() -> None:
    assert QWEN_7B.window(27) is None


def test_a_configuration_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'gpt2' is not a known family; known: .*llama"):
        ModelShape.of(GPT2Config())
