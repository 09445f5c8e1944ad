"""SwiftKV's exit with a regression in place of its training: deeper layers get K and V of predicted states."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from deltahalt.policies.halted_states import LastState
from deltahalt.policies.single_input_kv import SingleInputKV

RIDGE = 0.1  # penalty of the regression; with a large one every halted token changes by the mean of the active ones


@dataclass(frozen=True, kw_only=True)
class Forecast(SingleInputKV):
    """Keep the last tokens only; deeper layers compute K and V of the others from predicted states.

    The last tokens run through all layers, so the change of their states is known in every layer. The predicted state
    of a halted token changes by a weighted mean of these changes; the weights come from a ridge regression on the
    states at the start layer. The policy does not read the question. The options are those of `SingleInputKV`.

    Raises:
        PolicyError: For an option out of range, or one that `SingleInputKV` does not support.

    Source:
        Ours, after SwiftKV's SingleInputKV (arXiv 2410.03960), whose deeper layers are trained.

    Example:
        >>> policy = Forecast(start=21)
        >>> format_policy(policy)
        'forecast:start=21'
        >>> policy.kept(4096)
        128
    """

    name: ClassVar[str] = "forecast"
    summary: ClassVar[str] = "the last tokens stay active; deeper layers get K/V of the others from predicted states"
    source: ClassVar[str] = "ours, after SwiftKV's SingleInputKV (arXiv 2410.03960)"

    @property
    def halted_states(self) -> "Predicted":
        return Predicted(penalty=RIDGE, in_order=True)


@dataclass(frozen=True, kw_only=True)
class Predicted(LastState):
    """Deeper layers compute K and V of a halted token from the state that a ridge regression predicts."""

    fewest_running: ClassVar[int] = 8  # a regression on fewer states would not be determined

    penalty: float

    def weights(self, running: torch.Tensor, halted: torch.Tensor) -> torch.Tensor:
        return ridge_weights(running, halted, self.penalty)


def ridge_weights(known: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """Weights [m, w] that predict a value at each of the states `wanted` [m, D] from the values at `known` [w, D].

    This is a ridge regression with an intercept, on states scaled to unit length. The penalty is a share of the mean
    squared distance of known states from their mean. It is solved in its dual form: a prediction is a weighted mean of
    known values, so the same weights are valid in every layer.
    """
    dtype = known.dtype
    with torch.autocast(known.device.type, enabled=False):  # torch.linalg has no half precision
        known, wanted = normalize(known.float(), dim=-1), normalize(wanted.float(), dim=-1)
        among, across = known @ known.T, wanted @ known.T  # [w, w], [m, w]
        mean = among.mean(dim=0)
        across = across - across.mean(dim=1, keepdim=True) - mean + mean.mean()
        among = among - mean - mean[:, None] + mean.mean()
        # If all known states are equal, the prediction is the mean of their values.
        strength = (penalty * among.diagonal().mean()).clamp(min=1e-3)
        among.diagonal().add_(strength)
        weights = torch.linalg.solve_ex(among, across.T)[0].T
        return (weights + (1 - weights.sum(dim=1, keepdim=True)) / len(known)).to(dtype)
