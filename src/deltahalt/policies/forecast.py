"""SwiftKV's idea with a regression in place of its training: K and V of predicted states."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from deltahalt.policies.halted_states import LastState
from deltahalt.policies.single_input_kv import SingleInputKV

RIDGE = 0.1  # penalty of the regression; with a large one all tokens change by the mean of the latest


@dataclass(frozen=True, kw_only=True)
class Forecast(SingleInputKV):
    """Halt all but the latest tokens, and let deeper layers compute K and V of the others from predicted states.

    The latest tokens run through all layers, so their change is known at every layer. A halted token changes by a
    weighted mean of these changes, with weights from a ridge regression on the states where it stopped. The policy
    does not read the question.

    Raises PolicyError as SingleInputKV.
    """

    name: ClassVar[str] = "forecast"
    summary: ClassVar[str] = "the latest stay active; deeper layers read K/V of the others' predicted states"
    source: ClassVar[str] = "ours, after SwiftKV's SingleInputKV (arXiv 2410.03960)"

    @property
    def halted_states(self) -> "Predicted":
        return Predicted(penalty=RIDGE, in_order=True)


@dataclass(frozen=True, kw_only=True)
class Predicted(LastState):
    """Deeper layers compute K and V of a halted token from the state that a ridge regression predicts."""

    fewest_running: ClassVar[int] = 8  # fewer states do not determine a regression

    penalty: float

    def weights(self, running: torch.Tensor, halted: torch.Tensor) -> torch.Tensor:
        return ridge_weights(running, halted, self.penalty)


def ridge_weights(known: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """Weights [m, w] that predict a value of each of the states `wanted` [m, D] from those of states `known` [w, D].

    Ridge regression with an intercept on states scaled to unit length; the penalty is a share of the mean squared
    distance of known states from their mean. Solved in its dual form: a prediction is a weighted mean of known values,
    so the same weights serve every layer.
    """
    dtype = known.dtype
    with torch.autocast(known.device.type, enabled=False):  # solvers do not run in half precision
        known, wanted = normalize(known.float(), dim=-1), normalize(wanted.float(), dim=-1)
        among, across = known @ known.T, wanted @ known.T  # [w, w], [m, w]
        mean = among.mean(dim=0)
        across = across - across.mean(dim=1, keepdim=True) - mean + mean.mean()
        among = among - mean - mean[:, None] + mean.mean()
        # Equal known states determine nothing: the prediction is then their mean.
        strength = (penalty * among.diagonal().mean()).clamp(min=1e-3)
        among.diagonal().add_(strength)
        weights = torch.linalg.solve_ex(among, across.T)[0].T
        return (weights + (1 - weights.sum(dim=1, keepdim=True)) / len(known)).to(dtype)
