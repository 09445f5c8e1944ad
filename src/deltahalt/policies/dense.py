"""The full model, run by the same engine."""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy


@dataclass(frozen=True, kw_only=True)
class Dense(Policy):
    """Keep all tokens: what every other policy is compared with."""

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
