"""MaxSim: the passages that resemble the question, found as a retriever would, without any attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.asking import askers, check_asking
from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.late_interaction import AROUND, POWER, late_interaction


@dataclass(frozen=True, kw_only=True)
class MaxSim(Policy):
    """Keep the tokens around which the last `window` tokens find states most like their own.

    Asks for states alone: no queries, keys or deeper layers, so layers with a sliding window can decide, too.
    window: number of last tokens whose states are compared with all others; in a scope without text, no more than the
        tokens after the last that may halt, since these tokens are kept.
    kernel: odd width of the surroundings, in tokens, in which a match counts for a token.
    power: 1 or more; the higher, the more a rare match outweighs many common ones.
    standardize: divide every dimension of the states by its standard deviation over the prompt first.
    """

    name: ClassVar[str] = "max-sim"
    summary: ClassVar[str] = "what is around the best matches of the last window stays active"
    source: ClassVar[str] = "ours, after ColBERT's late interaction (arXiv 2004.12832)"

    window: int = 32
    kernel: int = AROUND
    power: int = POWER
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_asking(self.window, self.kernel, self)
        if self.power < 1:
            raise PolicyError(f"power is {self.power}; it must be 1 or more")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in" if self.boundary == "attention" else "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        among, window = self.eligible_and_count(view)[0], askers(self.window, self, view)
        return late_interaction(view, among, window, self.kernel, power=self.power, standardize=self.standardize)
