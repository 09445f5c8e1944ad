"""Time every method of Table 7 on a model of Qwen2-VL-7B's shape with random weights.

usage: vision_efficiency.py ROWS.jsonl [--images N] [--side PIXELS] [--new-tokens N] [--repeats N] [--retain SHARE,...]
                            [--small]

One prompt: N images of SIDE x SIDE pixels (4 of 1,280), a question behind them, and what is generated after it (32
tokens). `vision-dash/dash` at 0.35 keeps that share at either stage. Each run is paired with one of the plain host.
--small: a tiny model in float32, to see that everything runs.
"""

import argparse
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

from deltahalt import Dense, halting
from deltahalt.clock import clock
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.evaluation.pictures.combinations import Combination, combinations
from deltahalt.lab.rows.base import RanRow, append_rows

METHODS = [
    "dart-vit",
    "tome",
    "tofu",
    "visionzip",
    "prumerge-plus",
    "vision-dash",
    "fastv",
    "dart",
    "v2drop",
    "sparsevlm",
    "dash",
    "vision-dash/dash",
    "visionzip/window-attention:heads=max,kernel=1",
]
IMAGE, VIDEO, START, END = 151655, 151656, 151652, 151653
PATCH, MERGE = 14, 2
BIG: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
BIG |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
TOWER: dict[str, Any] = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584}
SMALL: dict[str, Any] = BIG | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL_TOWER: dict[str, Any] = {"depth": 12, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}


@dataclass(frozen=True)
class VisionBenchRow(RanRow):
    """One method at one share of visual tokens, against the plain host on the same prompt.

    prefill, total: seconds until the first and the last new token, medians; full_prefill, full_total: of the host.
    prefill_share, total_share: median of method / host over pairs of runs. tflops, kv_mb: of the prefill, ViT included,
    and of K and V after it; full_tflops, full_kv_mb: of the full model. visual: visual tokens of the full prompt.
    """

    kind: ClassVar[str] = "vision-bench"

    model: str
    method: str
    retain: float
    images: int
    visual: int
    new_tokens: int
    prefill: float
    total: float
    full_prefill: float
    full_total: float
    prefill_share: float
    total_share: float
    tflops: float
    full_tflops: float
    kv_mb: float
    full_kv_mb: float
    repeats: int


def build(small: bool, device: str) -> Any:
    """The model, with random weights."""
    text, tower = (SMALL, SMALL_TOWER) if small else (BIG, TOWER)
    frequencies = text["hidden_size"] // text["num_attention_heads"] // 2
    side = 3 * frequencies // 8  # for rows and for columns each, as in Qwen2-VL
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [frequencies - 2 * side, side, side]}
    config = Qwen2VLConfig(
        text_config=text | {"rope_parameters": rope, "max_position_embeddings": 32768},
        vision_config=tower | {"patch_size": PATCH, "spatial_merge_size": MERGE},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32 if small else torch.bfloat16)
    return model.eval()


def prompt(model: Any, images: int, side: int) -> dict[str, torch.Tensor]:
    """What the host's processor would make of the images and a question of 64 tokens."""
    cells = max(1, round(side / (PATCH * MERGE)))
    rows = cells * MERGE
    ids = torch.tensor([[*[1] * 16, *[START, *[IMAGE] * cells**2, END] * images, *range(100, 164)]])
    pixels = torch.randn(images * rows**2, 3 * 2 * PATCH**2, generator=torch.Generator().manual_seed(1))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.dtype),
        "image_grid_thw": torch.tensor([[1, rows, rows]] * images),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:  # newer hosts alone
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return {name: values.to(model.device) for name, values in inputs.items()}


def timed(model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> float:
    """Seconds of generating exactly so many tokens."""
    begin = clock()
    model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return clock() - begin


def measure(
    model: Any, name: str, combination: Combination, inputs: dict[str, torch.Tensor], tokens: int, repeats: int
) -> VisionBenchRow:
    """Run method and host in turn, after one warm-up of each."""
    runs: dict[str, list[tuple[float, float]]] = {"full": [], "method": []}
    vision = combination.vision_policy or "uniform-groups:retain=1"  # which keeps all, and counts the ViT's FLOPs
    method = partial(halting, model, combination.policy or Dense(), vision=vision)
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {"full": nullcontext, "method": method}
    for _ in range(repeats + 1):
        for way, context in contexts.items():
            with context() as halted:
                runs[way].append((timed(model, inputs, 1), timed(model, inputs, tokens)))
                if halted is not None:
                    report, tower = halted.report, halted.vision_report
    full, ours = runs["full"][1:], runs["method"][1:]
    visual = int((inputs["input_ids"] == IMAGE).sum())
    return VisionBenchRow(
        model=name,
        method=combination.method,
        retain=combination.retain,
        images=len(inputs["image_grid_thw"]),
        visual=visual,
        new_tokens=tokens,
        prefill=median(first for first, _ in ours),
        total=median(last for _, last in ours),
        full_prefill=median(first for first, _ in full),
        full_total=median(last for _, last in full),
        prefill_share=median(a / b for (a, _), (b, _) in zip(ours, full, strict=True)),
        total_share=median(a / b for (_, a), (_, b) in zip(ours, full, strict=True)),
        tflops=(report.flops + tower.flops) / 1e12,
        full_tflops=(report.full_flops + tower.full_flops) / 1e12,
        kv_mb=report.cache_bytes / 1e6,
        full_kv_mb=report.full_cache_bytes / 1e6,
        repeats=repeats,
        **ran_on(model),
    )


def main() -> None:
    """Measure every method and print its line."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=1280)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--retain", default="0.35,0.2")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    model = build(given.small, "cuda" if torch.cuda.is_available() else "cpu")
    name = "tiny Qwen2-VL" if given.small else "Qwen2-VL-7B's shape"
    inputs = prompt(model, given.images, given.side)
    for combination in combinations(METHODS, [float(share) for share in given.retain.split(",")]):
        row = measure(model, name, combination, inputs, given.new_tokens, given.repeats)
        append_rows(given.rows, [row])
        took = f"prefill {row.prefill:.3f} s, {row.prefill_share:.1%}; total {row.total_share:.1%}"
        print(f"{row.method} at {row.retain}: {took}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
