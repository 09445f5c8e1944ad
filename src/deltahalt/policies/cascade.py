"""Methods that decide at three layers in a row, by one rule."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.base import Policy, Progressive


@dataclass(frozen=True, kw_only=True)
class Cascade(Policy):
    """Three decisions of `rule`, each among the tokens still active; every ratio is a share of the whole prompt's.

    second_start, third_start: the layers of the later decisions, as `start` is that of the first.
    second_ratio, third_ratio: the shares of the prompt halted after them, as `pruning_ratio` is after the first.
    A subclass names its rule and gives the defaults.
    """

    rule: ClassVar[type[Policy]]

    second_start: float | int
    second_ratio: float
    third_start: float | int
    third_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        Progressive(self.stages)  # has every setting checked

    @property
    def stages(self) -> tuple[Policy, ...]:
        shared = ("keep_first", "keep_last", "scope", "boundary", "ratio_of", "chunk")
        settings = {name: getattr(self, name) for name in shared}
        decisions = (
            (self.start, self.pruning_ratio),
            (self.second_start, self.second_ratio),
            (self.third_start, self.third_ratio),
        )
        return tuple(self.rule(start=start, pruning_ratio=ratio, **settings) for start, ratio in decisions)
