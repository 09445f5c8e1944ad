"""The states from which deeper layers compute K and V of halted tokens, for policies under which they do."""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class LastState:
    """Deeper layers compute K and V of a halted token from its last state.

    in_order: whether every halted token comes before every active one in the prompt. fewest_running: least number of
    tokens at the end of every prompt that no stage may halt.
    """

    fewest_running: ClassVar[int] = 0

    in_order: bool = False

    def weights(self, running: torch.Tensor, halted: torch.Tensor) -> torch.Tensor | None:
        """Weights [m, w] by which m `halted` states [m, D] change in deeper layers; None if they do not change.

        The change of a halted state is the sum of the changes of w `running` states [w, D], weighted by its row.
        """
        return None
