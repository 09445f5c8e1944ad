"""The groups of patches that flow through a ViT, a pack of images, and the one gather that compacts them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from deltahalt.families.base import Rotary


@dataclass(frozen=True)
class Segments:
    """A division of a stream's G groups into runs: images, frames, or what a block's attention keeps apart.

    Runs that lost all their groups are no longer there: the host's attention cannot take an empty one.
    """

    owner: torch.Tensor  # [G] number of the run that each group belongs to, ascending
    lengths: tuple[int, ...]  # groups in each run

    @classmethod
    def of(cls, owner: torch.Tensor) -> "Segments":
        """The runs of groups with these owners."""
        return cls(owner, tuple(torch.unique_consecutive(owner, return_counts=True)[1].tolist()))

    def keep(self, index: torch.Tensor) -> "Segments":
        """The runs of the groups at `index`, ascending."""
        return Segments.of(self.owner[index])

    def cu_seqlens(self, unit: int) -> torch.Tensor:
        """Borders of the runs in a sequence of `unit` patches a group, [runs + 1] int32."""
        lengths = torch.tensor(self.lengths, device=self.owner.device) * unit
        return F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class GroupStream:
    """The active groups of a pack of images, G in all; a group is the u patches that become one visual token."""

    hidden: torch.Tensor  # [G, u, D]
    places: torch.Tensor  # [G] row of the tower's output that each group's feature belongs in
    segments: Mapping[str, Segments]  # "image", "frame", and what each kind of block keeps apart
    rotary: Rotary  # cos and sin of the patches, each [G, u, d]
    sizes: torch.Tensor | None = None  # [G] how many groups each stands for, where that counts

    @property
    def unit(self) -> int:
        """u, the patches in a group."""
        return self.hidden.shape[1]

    @property
    def patches(self) -> torch.Tensor:
        """Hidden states as the host's blocks take them, [G * u, D]."""
        return self.hidden.flatten(0, 1)

    def advance(self, hidden: torch.Tensor) -> "GroupStream":
        """The same groups with new states, [G * u, ...] or [G, u, ...]."""
        return replace(self, hidden=hidden.reshape(len(self.places), -1, hidden.shape[-1]))

    def keep(self, index: torch.Tensor, hidden: torch.Tensor, sizes: torch.Tensor | None) -> "GroupStream":
        """The groups at `index`, ascending, with the states and sizes given for them."""
        index, (cos, sin) = index.to(self.places.device), self.rotary
        return GroupStream(
            hidden=hidden,
            places=self.places[index],
            segments={kind: segments.keep(index) for kind, segments in self.segments.items()},
            rotary=(cos[index], sin[index]),
            sizes=sizes,
        )

    def spread(self, rows: torch.Tensor, count: int, filler: float) -> torch.Tensor:
        """Rows [G, ...] of the groups, in their places among `count` rows; `filler` elsewhere."""
        full = rows.new_full((count, *rows.shape[1:]), filler)
        full[self.places.to(rows.device)] = rows
        return full
