"""SwiftKV's idea with a regression in place of its training: K and V of what the states would have become."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.errors import PolicyError
from deltahalt.policies.single_input_kv import SingleInputKV


@dataclass(frozen=True, kw_only=True)
class Forecast(SingleInputKV):
    """Halt all but the latest tokens, and let deeper layers make K and V of what the others would have become.

    The latest tokens run on, so how they change is known at every layer; halted ones change by a weighted mean of that,
    with weights from a ridge regression on the states where they stopped (`engine.served`). No question is looked at.
    ridge: the regression's penalty, more than 0; much of it lets all change by the mean of the latest.

    Raises PolicyError as SingleInputKV, and for a penalty that is not positive.
    """

    name: ClassVar[str] = "forecast"
    summary: ClassVar[str] = "the latest stay active; the others stop, and serve K/V of what they would have become"
    source: ClassVar[str] = "ours, after SwiftKV's SingleInputKV (arXiv 2410.03960)"

    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise PolicyError(f"ridge is {self.ridge!r}; it must be more than 0")

    @property
    def penalty(self) -> float | None:
        return self.ridge
