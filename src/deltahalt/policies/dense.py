"""The full model, run by the same engine."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy


@dataclass(frozen=True, kw_only=True)
class Dense(Policy):
    """Keep all tokens: what every other policy is compared with."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "all tokens stay active"
    source: ClassVar[str] = "the model itself"

    @property
    def stages(self) -> tuple[Policy, ...]:
        return ()

    def kept(self, prompt: int, kinds: torch.Tensor | None = None) -> int:
        return prompt
