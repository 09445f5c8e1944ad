"""DASH with K/V of halted tokens in deeper layers, computed from their last states."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.dash import Dash
from deltahalt.policies.halted_states import LastState


@dataclass(frozen=True, kw_only=True)
class DashFrozen(Dash):
    """Halt the tokens that `Dash` halts, but let deeper layers compute K and V from their last states.

    This saves the queries and the FFN of halted tokens, but not their K and V. On the models measured, answers are
    worse than without these K/V (docs/ablations.md). The options are those of `Dash`.

    Raises:
        PolicyError: For an option out of range.

    Source:
        DASH (arXiv 2604.18103), if "halting" is read as freezing the state of a token.

    Example:
        >>> policy = DashFrozen(start=11, pruning_ratio=0.5)
        >>> format_policy(policy)
        'dash-frozen:start=11,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "dash-frozen"
    summary: ClassVar[str] = "as dash, but deeper layers get K/V of halted tokens from their last states"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), with halting read as freezing"

    @property
    def halted_states(self) -> LastState:
        return LastState()
