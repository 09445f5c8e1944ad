"""FLOPs of a prefill by two counts: the DASH paper's proxy, and all operations of the matrix multiplications."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltahalt.errors import InputError
from deltahalt.host.families import family_of
from deltahalt.policies.base import AnyPolicy, place


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. windows: for each layer, the number of latest tokens it attends to; None for all."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, config: Any) -> "ModelShape":
        """Return the shape in a transformers configuration. Raises UnsupportedError for an unknown family."""
        family = family_of(config)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            windows=family.windows(config),
        )

    @classmethod
    def parse(cls, text: str) -> "ModelShape":
        """Read a known model's name, or "layers,hidden,intermediate,heads,kv_heads,head_dim". Raises InputError."""
        if text in KNOWN_SHAPES:
            return KNOWN_SHAPES[text]
        numbers = [number.strip() for number in text.split(",")]
        if len(numbers) != len(LARGEST) or not all(number.isdecimal() and int(number[:9]) > 0 for number in numbers):
            raise InputError(
                f"shape {text!r} is neither one of {', '.join(KNOWN_SHAPES)} nor six positive numbers: "
                "layers,hidden,intermediate,heads,kv_heads,head_dim"
            )
        for number, (name, largest) in zip(numbers, LARGEST.items(), strict=True):
            if len(number) > 9 or int(number) > largest:
                raise InputError(f"shape {text!r} has {name} above {largest:,}: give {largest:,} or less")
        layers, hidden, intermediate, heads, kv_heads, head_dim = map(int, numbers)
        shape = cls(layers, hidden, intermediate, heads, kv_heads, head_dim)
        if shape.heads % shape.kv_heads:
            raise InputError(
                f"shape {text!r} has {shape.heads} heads and {shape.kv_heads} kv_heads: give heads that are a multiple "
                "of kv_heads"
            )
        if shape.head_dim % 2:
            raise InputError(f"shape {text!r} has head_dim {shape.head_dim}: rotary embedding needs an even number")
        return shape

    def window(self, layer: int) -> int | None:
        """Return the number of latest tokens that the layer attends to; None for all tokens."""
        return self.windows[layer] if self.windows else None


LARGEST = {  # the largest sizes that `ModelShape.parse` accepts, far above those of any existing model
    "layers": 1_000,
    "hidden": 1_000_000,
    "intermediate": 10_000_000,
    "heads": 10_000,
    "kv_heads": 10_000,
    "head_dim": 10_000,
}
KNOWN_SHAPES = {
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 64),
    "qwen2.5-coder-0.5b": ModelShape(24, 896, 4864, 14, 2, 64),
    "qwen2.5-coder-1.5b": ModelShape(28, 1536, 8960, 12, 2, 128),
    "qwen2.5-7b": ModelShape(28, 3584, 18944, 28, 4, 128),
    "llama-3.1-8b": ModelShape(32, 4096, 14336, 32, 8, 128),
}


@dataclass(frozen=True)
class LayerLoad:
    """What one layer computes for one sequence.

    attended: tokens that pass through attention. ffn_tokens: tokens that pass through the FFN (differs where tokens
    halt between the two). kv_only_tokens: halted tokens whose K and V this layer still computes and reads.
    lookahead_tokens: tokens whose K and V at deeper layers are computed for a look-ahead, once for each such layer.
    regressed_pairs: (halted, running) pairs in the regression that predicts states of halted tokens.
    """

    attended: int
    ffn_tokens: int
    kv_only_tokens: int = 0
    lookahead_tokens: int = 0
    regressed_pairs: int = 0


def paper_flops(shape: ModelShape, loads: Sequence[LayerLoad]) -> int:
    """Return the proxy of DASH Eq. 4, A(n) = 4nd^2 + 2n^2 d + 2ndm, summed over layers.

    The proxy ignores grouped-query attention, gated FFNs and causal masking.
    """
    d, m = shape.hidden, shape.intermediate
    return sum(4 * load.attended * d * d + 2 * load.attended**2 * d + 2 * load.ffn_tokens * d * m for load in loads)


def true_flops(shape: ModelShape, loads: Sequence[LayerLoad], prompt: int) -> int:
    """Return the FLOPs of all matrix multiplications in the layers; a multiply-add counts as two.

    The count includes the q, k, v and o projections with grouped heads, causal attention and the gated FFN. It leaves
    out embedding, norms, logits, the queries that policies score with and the solving of a regression: together these
    are less than 1 % of the FLOPs of any real prompt.

    Args:
        shape: The decoder's sizes.
        loads: What each layer computes.
        prompt: Number of tokens before any halting. A layer with a sliding window is counted as if the kept tokens
            were spread evenly over the prompt.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = 0
    for layer, load in enumerate(loads):
        total += 4 * load.attended * shape.hidden * queries
        total += 4 * (load.attended + load.kv_only_tokens + load.lookahead_tokens) * shape.hidden * keys
        total += 4 * queries * _pairs(load, shape.window(layer), prompt)
        total += 6 * load.ffn_tokens * shape.hidden * shape.intermediate
        total += 2 * load.regressed_pairs * shape.hidden
    return total


def _pairs(load: LayerLoad, window: int | None, prompt: int) -> int:
    """Return the number of query-key pairs of a causal layer."""
    readers = load.attended
    if window is not None and window < prompt:
        inside = max(1, round(window * readers / prompt))
        return _triangle(inside) + (readers - inside) * inside
    return _triangle(readers) + readers * load.kv_only_tokens // 2  # on average, half of them precede a query


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def dense_loads(layers: int, tokens: int) -> list[LayerLoad]:
    """Return the loads of the full model for a prompt of `tokens` tokens."""
    return [LayerLoad(tokens, tokens)] * layers


def policy_loads(policy: AnyPolicy, layers: int, tokens: int, *, paper: bool = False) -> list[LayerLoad]:
    """Return the load of each layer under `policy`, for a prompt of `tokens` tokens with scope "all".

    All active tokens count in the last layer. A prefill of which only the last token's logits are wanted spends less:
    see `Report.loads`.

    paper: count as the paper's Eq. 7 does, where the start layer runs on the kept tokens only. The paper's Alg. 1 and
    this engine run it on all tokens.
    """
    loads, active, kv_only, regressed, placed = [], tokens, 0, 0, place(policy, layers)
    decisions = {stage.last: (stage, single) for stage in placed for single in stage.policies}
    for layer in range(layers):
        before = attended = ffn = active
        readable = kv_only
        if layer in decisions and decisions[layer][1].kept(tokens) < before:
            stage, single = decisions[layer]
            active = single.kept(tokens)
            attended = active if paper else before
            ffn = active if paper or single.boundary == "attention" else before
            if stage.halted_states is not None:
                kv_only += before - active
                regressed += (before - active) * stage.running * (stage.halted_states.fewest_running > 0)
        lookahead = before * sum(
            stage.ahead(single, layer, layers)
            for stage in placed
            for single in stage.policies
            if single.kept(tokens) < before
        )
        loads.append(LayerLoad(attended, ffn, readable, lookahead, regressed))
    return loads


@dataclass(frozen=True)
class Savings:
    """What a policy saves on one prompt.

    prompt, kept: number of tokens before the first and after the last decision. paper_reduction, true_reduction: share
    of the full model's FLOPs that the policy saves, by each count. paper_speedup, true_speedup: FLOPs of the full model
    divided by those under the policy, by each count.
    """

    prompt: int
    kept: int
    paper_reduction: float
    paper_speedup: float
    true_reduction: float
    true_speedup: float


def savings(shape: ModelShape, policy: AnyPolicy, tokens: int) -> Savings:
    """Return the reduction (Eq. 8) and speedup (Eq. 9) of `policy` on a prompt of `tokens` tokens, by both counts."""
    full = dense_loads(shape.layers, tokens)
    paper = policy_loads(policy, shape.layers, tokens, paper=True)
    true = policy_loads(policy, shape.layers, tokens)
    by_paper = paper_flops(shape, paper) / paper_flops(shape, full)
    by_count = true_flops(shape, true, tokens) / true_flops(shape, full, tokens)
    return Savings(tokens, paper[-1].attended, 1 - by_paper, 1 / by_paper, 1 - by_count, 1 / by_count)
