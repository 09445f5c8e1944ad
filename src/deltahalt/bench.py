"""How fast a prefill is: the plain host, the engine with nothing halted, and a policy, in turn on the same prompt."""

import json
import statistics
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from deltahalt.attach import halting
from deltahalt.clock import clock
from deltahalt.errors import InputError
from deltahalt.flops import ModelShape, savings
from deltahalt.machine import machine_name
from deltahalt.policies import Dense
from deltahalt.policy import AnyPolicy


@dataclass(frozen=True)
class BenchRow:
    """One length and policy. Seconds are medians; ratios are medians over paired runs, so drift cancels.

    full_seconds: plain Hugging Face. dense_seconds: this engine, nothing halted. overhead: dense / full - 1.
    speedup: full / halted. bound: the same ratio in true FLOPs. share: speedup / bound. peak_bytes: most memory that a
    prefill held on the GPU, weights included, for full and halted; None on a CPU.
    """

    model: str
    policy: str
    prompt: int
    batch: int
    dtype: str
    full_seconds: float
    dense_seconds: float
    halted_seconds: float
    overhead: float
    speedup: float
    bound: float
    share: float
    full_peak_bytes: int | None
    halted_peak_bytes: int | None
    repeats: int
    seed: int
    machine: str
    torch: str
    transformers: str


def random_model(shape: ModelShape, *, dtype: torch.dtype, device: str, longest: int) -> Any:
    """A Llama of this shape with random weights, for prompts up to `longest` tokens: speed does not ask for sense."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=longest,
        dtype=dtype,
    )
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


@torch.inference_mode()
def measure(
    model: Any,
    name: str,
    policy: AnyPolicy,
    policy_name: str,
    length: int,
    *,
    batch: int = 1,
    repeats: int = 5,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> BenchRow:
    """Time the prefill of `batch` random prompts of `length` tokens, `repeats` times each way after one warm-up.

    tick: called after each prefill, 3 * (repeats + 1) times. Raises InputError if the model takes no such length.
    """
    config = model.get_decoder().config
    if length > config.max_position_embeddings:
        raise InputError(f"{name} takes {config.max_position_embeddings} tokens: measure no longer prompts")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab_size, (batch, length), generator=generator).to(model.device)
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "full": nullcontext,
        "dense": lambda: halting(model, Dense()),
        "halted": lambda: halting(model, policy),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int | None] = {}
    for run in range(repeats + 1):
        for way, context in ways.items():
            with context():
                took, peaks[way] = _prefill(model, tokens)
            if run:  # the first is the warm-up
                seconds[way].append(took)
            tick()
    bound = savings(ModelShape.of(config), policy, length).true_speedup
    speedup = _median_ratio(seconds["full"], seconds["halted"])
    return BenchRow(
        model=name,
        policy=policy_name,
        prompt=length,
        batch=batch,
        dtype=str(model.dtype).removeprefix("torch."),
        full_seconds=statistics.median(seconds["full"]),
        dense_seconds=statistics.median(seconds["dense"]),
        halted_seconds=statistics.median(seconds["halted"]),
        overhead=_median_ratio(seconds["dense"], seconds["full"]) - 1,
        speedup=speedup,
        bound=bound,
        share=speedup / bound,
        full_peak_bytes=peaks["full"],
        halted_peak_bytes=peaks["halted"],
        repeats=repeats,
        seed=seed,
        machine=machine_name(model.device),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def append_rows(path: Path, rows: Iterable[BenchRow]) -> None:
    """Add rows to a JSONL file, one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_rows(path: Path) -> list[BenchRow]:
    """The rows of a JSONL file."""
    return [BenchRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(rows: Iterable[BenchRow]) -> str:
    """The rows as a Markdown table."""
    head = "| model | policy | prompt | full s | halted s | speedup | bound | share | overhead | machine |"
    lines = [head, "|" + "---|" * head.count(" | ") + "---|"]
    for row in rows:
        cells = (
            row.model,
            f"`{row.policy}`",
            f"{row.prompt:,}" if row.batch == 1 else f"{row.batch} x {row.prompt:,}",
            f"{row.full_seconds:.3f}",
            f"{row.halted_seconds:.3f}",
            f"**{row.speedup:.2f}x**",
            f"{row.bound:.2f}x",
            f"{row.share:.2f}",
            f"{100 * row.overhead:+.1f} %",
            f"{row.machine}, {row.dtype}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _prefill(model: Any, tokens: torch.Tensor) -> tuple[float, int | None]:
    """Seconds of one prefill, and the most GPU memory it held."""
    if tokens.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = clock()
    model(tokens, past_key_values=DynamicCache(config=model.config), logits_to_keep=1)
    took = clock() - begin
    return took, torch.cuda.max_memory_allocated() if tokens.is_cuda else None


def _median_ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
