"""DASH whose halted tokens stay readable: deeper layers compute their K and V from the last state they had."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.dash import Dash
from deltahalt.policies.halted_states import LastState


@dataclass(frozen=True, kw_only=True)
class DashFrozen(Dash):
    """Halt the tokens that DASH halts, but keep their K and V in deeper layers.

    This reading of "halting" saves the halted tokens' queries and FFN, not their K and V. On the models measured it
    makes answers worse than dropping them (docs/ablations.md).
    """

    name: ClassVar[str] = "dash-frozen"
    summary: ClassVar[str] = "as dash, but halted tokens keep K/V of their last state in deeper layers"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), read as freezing"

    @property
    def halted_states(self) -> LastState:
        return LastState()
