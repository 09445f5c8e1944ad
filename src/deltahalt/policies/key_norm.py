"""Key norm: keys with a small norm tend to receive much attention, so tokens with a large norm halt."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.norms import norms


@dataclass(frozen=True, kw_only=True)
class KeyNorm(Policy):
    """Keep the tokens whose keys at the start layer have the smallest L2 norm, averaged over the key heads.

    The policy does not read the question. The options are those of `Policy`.

    Raises:
        PolicyError: For an option out of range.

    Source:
        Devoto et al. 2024 (arXiv 2406.11430), who evict cache entries by this norm; here prompt tokens halt by it.

    Example:
        >>> policy = KeyNorm(start=4, pruning_ratio=0.5)
        >>> format_policy(policy)
        'key-norm:start=4,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "key-norm"
    summary: ClassVar[str] = "tokens with the smallest key norm stay active (query-free)"
    source: ClassVar[str] = "Devoto et al. 2024 (arXiv 2406.11430), turned from cache eviction into halting"
    pointwise: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys"})

    def score(self, view: LayerView) -> torch.Tensor:
        scores: torch.Tensor = norms(view.keys()).mean(dim=0)
        return -scores
