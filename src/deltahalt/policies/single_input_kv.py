"""SwiftKV without its training: deeper layers compute K and V of the prompt from the states of one layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy, Scope
from deltahalt.policies.halted_states import LastState
from deltahalt.policies.layer_view import LayerView


@dataclass(frozen=True, kw_only=True)
class SingleInputKV(Policy):
    """Keep the last tokens only; deeper layers compute K and V of the others from their states at the start layer.

    Every layer's cache holds the whole prompt, and the policy does not read the question.

    Attributes:
        start: Start layer, after which the other tokens halt: an index (int), or a fraction of the layers (float).
        pruning_ratio: Share of the tokens before the last `keep_last` that halts, in [0, 1]; 1 is all of them.
        keep_first: Not supported: leave it at 0.
        keep_last: Number of tokens at the end of the prompt that run through all layers, 1 or more. It should cover the
            question and the end of the turn.
        scope: Not supported: leave it at "all".

    Raises:
        PolicyError: For an option out of range; and for keep_first, scope or chunk, since all halted tokens must come
            before the active ones.

    Source:
        SingleInputKV of SwiftKV (arXiv 2410.03960), without its distillation.

    Example:
        >>> policy = SingleInputKV(start=21)
        >>> format_policy(policy)
        'single-input-kv:start=21'
        >>> policy.kept(4096)
        128
    """

    name: ClassVar[str] = "single-input-kv"
    summary: ClassVar[str] = "the last tokens stay active; deeper layers get K/V of the others from their last states"
    source: ClassVar[str] = "SwiftKV's SingleInputKV (arXiv 2410.03960), without its distillation"
    pointwise: ClassVar[bool] = True

    start: float | int = 0.6
    pruning_ratio: float = 1.0
    keep_first: int = 0
    keep_last: int = 128
    scope: Scope = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, fixed in (("keep_first", 0), ("scope", "all"), ("chunk", 1)):
            if getattr(self, option) != fixed:
                raise PolicyError(
                    f"{self.name} does not support {option}={getattr(self, option)}, since it keeps the last tokens of "
                    f"the whole prompt: leave {option} at {fixed}"
                )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def halted_states(self) -> LastState:
        return LastState(in_order=True)

    def score(self, view: LayerView) -> torch.Tensor:
        return view.positions.float()
