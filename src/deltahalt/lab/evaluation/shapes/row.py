"""A row of `deltahalt shapes`: one policy on one prompt, generated and teacher-forced."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.lab.rows.base import RanRow


@dataclass(frozen=True)
class ShapeRow(RanRow):
    """One policy on one prompt of a shape.

    sample: digest of the prompt. held_out: whether its seed is one that calibration never draws from. prompt: tokens.
    score, full_score: of the generated answer, in [0, 1], and of the full model's; None where generation has no rule.
    said: the generated answer. nll, full_nll: mean negative log-likelihood of the gold answer's tokens, nats.
    speedup: true-FLOPs ratio on this model and prompt; reference_speedup: as in `SweepRow`.
    """

    kind: ClassVar[str] = "shapes"

    sample: str
    shape: str
    seed: int
    held_out: bool
    model: str
    policy: str
    prompt: int
    answer_tokens: int
    score: float | None
    full_score: float | None
    said: str
    nll: float
    full_nll: float
    speedup: float
    reference_speedup: float
