"""The groups of patches that flow through a ViT, a pack of images, and the one gather that compacts them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


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
    """The active groups of a pack of images, G in all; a group is the u patches that become one visual token.

    The blocks run on S rows: the patches of all groups, behind each image's class token if the tower has one.
    """

    hidden: torch.Tensor  # [S, D] states of the rows
    origin: torch.Tensor  # [S] row of the tower's whole output that each row is of
    members: torch.Tensor  # [G, u] rows of each group's patches
    places: torch.Tensor  # [G] row of the features that each group's feature belongs in
    segments: Mapping[str, Segments]  # "image", "frame", and what each kind of block keeps apart
    rotary: tuple[torch.Tensor, ...]  # cos and sin of the rows, each [S, d]
    sizes: torch.Tensor | None = None  # [G] how many groups each stands for, where that counts
    images: int | None = None  # where the host's blocks take a batch of images, which are equally long: how many

    @property
    def unit(self) -> int:
        """u, the patches in a group."""
        return self.members.shape[1]

    @property
    def rows(self) -> torch.Tensor:
        """States as the host's blocks take them: [S, D], or [images, S / images, D]."""
        return self.hidden if self.images is None else self.hidden.unflatten(0, (self.images, -1))

    @property
    def lead(self) -> int:
        """Rows of an image that belong to no group: its class token. They come first and always stay."""
        return 0 if self.images is None else (len(self.hidden) - self.members.numel()) // self.images

    def class_rows(self, image: int) -> slice:
        """Rows of the image's class token."""
        first = 0 if self.images is None else image * (len(self.hidden) // self.images)
        return slice(first, first + self.lead)

    @property
    def groups(self) -> torch.Tensor:
        """States of the groups' patches, [G, u, D]."""
        return self.hidden[self.members.to(self.hidden.device)]

    @property
    def row_sizes(self) -> torch.Tensor:
        """How many rows each row stands for, [S]."""
        assert self.sizes is not None
        sizes = self.sizes[:, None].expand(-1, self.unit)
        return self.sizes.new_ones(len(self.hidden)).index_put((self.members.to(sizes.device),), sizes)

    def advance(self, hidden: torch.Tensor) -> "GroupStream":
        """The same groups with new states of the rows, in the form of `rows` or [S, D]."""
        return replace(self, hidden=hidden.reshape(-1, hidden.shape[-1]))

    def as_features(self, features: torch.Tensor) -> "GroupStream":
        """The same groups with a feature for each, [G, D], in place of patches."""
        members = torch.arange(len(features), device=self.members.device)[:, None]
        return replace(self, hidden=features, origin=self.places, members=members, rotary=(), images=None)

    def keep(self, index: torch.Tensor, groups: torch.Tensor, sizes: torch.Tensor | None) -> "GroupStream":
        """The groups at `index`, ascending, with the states [k, u, D] and sizes given for them."""
        index = index.to(self.places.device)
        gone = torch.ones_like(self.places, dtype=torch.bool).index_fill(0, index, 0)
        stays = torch.ones_like(self.origin, dtype=torch.bool).index_fill(0, self.members[gone].flatten(), 0)
        rows = stays.nonzero().squeeze(1)
        members = (stays.cumsum(dim=0) - 1)[self.members[index]]
        hidden = self.hidden[rows.to(self.hidden.device)]
        return GroupStream(
            hidden=hidden.index_copy(0, members.flatten().to(hidden.device), groups.flatten(0, 1)),
            origin=self.origin[rows],
            members=members,
            places=self.places[index],
            segments={kind: segments.keep(index) for kind, segments in self.segments.items()},
            rotary=tuple(part[rows.to(part.device)] for part in self.rotary),
            sizes=sizes,
            images=self.images,
        )

    def spread(self, count: int, filler: float) -> torch.Tensor:
        """The rows in their places among `count` rows, with `filler` elsewhere."""
        full = self.hidden.new_full((count, self.hidden.shape[-1]), filler)
        full[self.origin.to(full.device)] = self.hidden
        return full
