"""The full model, run by the same engine as every policy."""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy


@dataclass(frozen=True, kw_only=True)
class Dense(Policy):
    """Keep all tokens active: the full model, with which every other policy is compared. It has no options.

    Raises:
        PolicyError: For any option.

    Source:
        The model itself.

    Example:
        >>> policy = Dense()
        >>> format_policy(policy)
        'dense'
        >>> policy.kept(4096)
        4096
    """

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "all tokens stay active"
    source: ClassVar[str] = "the model itself"
    configurable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        if given:
            raise PolicyError(f"dense takes no options, since the full model halts no tokens: leave {given[0]} out")

    @property
    def stages(self) -> tuple[Policy, ...]:
        return ()

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def kept(self, prompt: int, kinds: torch.Tensor | None = None) -> int:
        return prompt
