"""The base of policies that decide three times, at deeper and deeper layers, by the same rule."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy, Progressive


@dataclass(frozen=True, kw_only=True)
class Cascade(Policy):
    """Halt tokens in three stages by one `rule`, each among the tokens still active.

    A subclass gives the rule, which is a policy, and the defaults of the options. Every ratio is a share of the whole
    prompt's eligible tokens, so a later ratio must not be lower.

    Attributes:
        second_start: Layer of the second stage: an index or a fraction of the layers, as `start`.
        second_ratio: Share of the eligible tokens that have halted after the second stage, in [0, 1].
        third_start: Layer of the third stage: an index or a fraction of the layers, as `start`.
        third_ratio: Share of the eligible tokens that have halted after the third stage, in [0, 1].

    Raises:
        PolicyError: For an option out of range.
    """

    rule: ClassVar[type[Policy]]

    second_start: float | int
    second_ratio: float
    third_start: float | int
    third_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep:
            raise PolicyError(f"{self.name} has three stages, which cannot share one keep: give its three ratios")
        Progressive(self.stages)  # checks every option

    @property
    def stages(self) -> tuple[Policy, ...]:
        shared = ("shortest", "keep_first", "keep_last", "scope", "boundary", "ratio_of", "chunk")
        settings = {name: getattr(self, name) for name in shared}
        decisions = (
            (self.start, self.pruning_ratio),
            (self.second_start, self.second_ratio),
            (self.third_start, self.third_ratio),
        )
        return tuple(self.rule(start=start, pruning_ratio=ratio, **settings) for start, ratio in decisions)
