"""The active groups of patches in a ViT, and the one gather that removes the others from a pack of images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Segments:
    """A division of a stream's G groups into segments: images, frames, or the segments that attention keeps apart.

    A segment that lost all its groups is removed, since the host's attention does not accept an empty one.
    """

    owner: torch.Tensor  # [G] number of the segment that each group belongs to, ascending
    lengths: tuple[int, ...]  # number of groups in each segment

    @classmethod
    def of(cls, owner: torch.Tensor) -> "Segments":
        """Return the segments of groups with these owners [G]."""
        return cls(owner, tuple(torch.unique_consecutive(owner, return_counts=True)[1].tolist()))

    def keep(self, index: torch.Tensor) -> "Segments":
        """Return the segments of the groups at `index`, which is ascending."""
        return Segments.of(self.owner[index])

    def cu_seqlens(self, unit: int) -> torch.Tensor:
        """Return the borders of the segments in patches, `unit` per group: [segments + 1] int32."""
        lengths = torch.tensor(self.lengths, device=self.owner.device) * unit
        return F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class GroupStream:
    """The G active groups of a pack of images; a group is the u patches that become one visual token.

    The blocks run on S rows: for each image its class token, if the tower has one, then the patches of its groups.
    """

    hidden: torch.Tensor  # [S, D] states of the rows
    origin: torch.Tensor  # [S] index of each row in the tower's output without halting
    members: torch.Tensor  # [G, u] indices of the rows of each group's patches
    places: torch.Tensor  # [G] index of each group's feature in the tower's features without halting
    segments: Mapping[str, Segments]  # by kind: "image", "frame", and the segments of each kind of block
    rotary: tuple[torch.Tensor, ...]  # cos and sin of the rows, each [S, d]
    sizes: torch.Tensor | None = None  # [G] number of groups merged into each; None if nothing weights by it
    images: int | None = None  # size of the batch, if the host's blocks take a batch of equally long images

    @property
    def unit(self) -> int:
        """u, the number of patches in a group."""
        return self.members.shape[1]

    @property
    def rows(self) -> torch.Tensor:
        """States in the form that the host's blocks take: [S, D], or [images, S / images, D] for a batch."""
        return self.hidden if self.images is None else self.hidden.unflatten(0, (self.images, -1))

    @property
    def lead(self) -> int:
        """Number of class tokens of an image. Their rows come first, belong to no group, and always stay."""
        return 0 if self.images is None else (len(self.hidden) - self.members.numel()) // self.images

    def class_rows(self, image: int) -> slice:
        """Return the rows of the image's class token."""
        first = 0 if self.images is None else image * (len(self.hidden) // self.images)
        return slice(first, first + self.lead)

    @property
    def groups(self) -> torch.Tensor:
        """States of the groups' patches, [G, u, D]."""
        return self.hidden[self.members.to(self.hidden.device)]

    @property
    def row_sizes(self) -> torch.Tensor:
        """Number of rows merged into each row, [S]."""
        assert self.sizes is not None
        sizes = self.sizes[:, None].expand(-1, self.unit)
        return self.sizes.new_ones(len(self.hidden)).index_put((self.members.to(sizes.device),), sizes)

    def advance(self, hidden: torch.Tensor) -> "GroupStream":
        """Return the same groups with `hidden` as their states: [S, D], or of the shape of `rows`."""
        return replace(self, hidden=hidden.reshape(-1, hidden.shape[-1]))

    def as_features(self, features: torch.Tensor) -> "GroupStream":
        """Return the same groups with one feature each, [G, D], in place of their patches."""
        members = torch.arange(len(features), device=self.members.device)[:, None]
        return replace(self, hidden=features, origin=self.places, members=members, rotary=(), images=None)

    def keep(self, index: torch.Tensor, groups: torch.Tensor, sizes: torch.Tensor | None) -> "GroupStream":
        """Return the k groups at `index`, ascending, with new states `groups` [k, u, D] and `sizes` [k] or None."""
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
        """Return `count` rows [count, D]: each row of the stream at its `origin`, and `filler` elsewhere."""
        full = self.hidden.new_full((count, self.hidden.shape[-1]), filler)
        full[self.origin.to(full.device)] = self.hidden
        return full
