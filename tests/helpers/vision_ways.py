"""What tests of vision-language models run, and compare with the host or the oracle."""

from typing import Any

import torch

from deltahalt import (
    Dash,
    KeyNorm,
    Policy,
    Progressive,
    Uniform,
    halting,
)
from helpers.oracle import Feed, Oracle
from helpers.tiny_vision import (
    IMAGE,
    VISION,
    Prompts,
    Row,
    tiny_vision,
    vision_prompts,
)

TOLERANCE = 1e-5

HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}

VISUAL: dict[str, Any] = HALF | {"scope": "visual"}

APART = Progressive([Dash(**VISUAL), KeyNorm(**HALF | {"scope": "text", "pruning_ratio": 0.3})])

THREE = Progressive(
    [Dash(**VISUAL), Uniform(**VISUAL | {"start": 2, "pruning_ratio": 0.8}), Dash(**HALF | {"start": 3})]
)

STEPS = 4


def more(rows: int, count: int = 7, seed: int = 1) -> torch.Tensor:
    """Text that follows a prompt, [rows, count]."""
    return torch.randint(1, IMAGE, (rows, count), generator=torch.Generator().manual_seed(seed))


def logits_of(feed: Feed, prompts: Prompts) -> list[torch.Tensor]:
    """Logits of a prefill, of three single tokens, and of four tokens in one call."""
    tokens = more(len(prompts.ids))
    prefill = prompts.feed(feed)
    return [prefill, *(feed(tokens[:, step : step + 1]) for step in range(3)), feed(tokens[:, 3:])]


def generated(model: Any, prompts: Prompts, **options: Any) -> Any:
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True} | options
    with torch.no_grad():
        return model.generate(**prompts.call(), return_dict_in_generate=True, **options)


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def gap(name: str, attention: str, policy: Policy | Progressive, rows: tuple[Row, ...], **options: Any) -> float:
    """Largest difference of any logit between engine and oracle, decode steps included."""
    model = tiny_vision(name, attention)
    prompts = vision_prompts(model, name, rows)
    with halting(model, policy, **options) as halted:
        ours = logits_of(Feed(model), prompts)
    assert halted.report.stages
    oracle = Oracle(
        model,
        VISION[name].windows,
        halted.report,
        serving=[
            layer
            for (layer, _), stage in zip(halted.report.stages, halted.stages, strict=False)
            if stage.halted_states is not None
        ],
        blocks=prompts.blocks if name == "gemma3" else None,
    )
    theirs = logits_of(oracle, prompts)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
