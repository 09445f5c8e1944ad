"""A row of `vision-sweep`: one method on all pictures."""

from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import Row


@dataclass(frozen=True)
class VisionRow(Row):
    """One combination on all pictures; answers are generated greedily.

    method, retain, vision_policy, policy: see `Combination`. pictures: number of pictures. asked, right: number of
    questions of each kind, and of those answered word for word. kept: share of the visual tokens that are active in the
    decoder's last layer. vision_flops, flops: FLOPs of the ViT and of the prefill, as a share of the full model's.
    dtype, machine: the number format and the device of the model. question: whether it stands "before" or "after" the
    picture. skip: number of held-out pictures before the first one. by_picture: number of questions about each picture
    that are answered word for word. nll: negative log-likelihood of the right answers, nats, mean over the tokens of an
    answer and then over the questions about each picture.

    Older rows do not store the last four: their questions stand after the picture, and they skip no picture.
    """

    kind: ClassVar[str] = "vision"

    model: str
    method: str
    retain: float | None
    vision_policy: str | None
    policy: str | None
    pictures: int
    asked: dict[str, int]
    right: dict[str, int]
    kept: float
    vision_flops: float
    flops: float
    dtype: str
    machine: str
    question: str = "after"
    skip: int = 0
    by_picture: tuple[int, ...] = ()
    nll: tuple[float, ...] = ()

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "VisionRow":
        lists = {name: tuple(fields.get(name, ())) for name in ("by_picture", "nll")}
        return cls(**fields | lists)
