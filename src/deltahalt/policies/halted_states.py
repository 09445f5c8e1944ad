"""The states from which deeper layers compute K and V of halted tokens, where a policy keeps such K/V at all."""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class LastState:
    """Deeper layers compute K and V of a halted token from the last state that it had.

    in_order: every halted token comes before every active one. fewest_running: number of tokens at the end of every
    prompt that no stage may halt, at least.
    """

    fewest_running: ClassVar[int] = 0

    in_order: bool = False

    def weights(self, running: torch.Tensor, halted: torch.Tensor) -> torch.Tensor | None:
        """How each of the `halted` states [m, D] changes with the `running` ones [w, D] in deeper layers.

        Returns [m, w]: the change of a halted state is this weighted sum of the running tokens' changes. None: halted
        states do not change.
        """
        return None
