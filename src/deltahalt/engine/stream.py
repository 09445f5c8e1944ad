"""The tokens that flow through the decoder, and the one gather that compacts them."""

from dataclasses import dataclass

import torch

from deltahalt.host.families.base import Rotary


@dataclass(frozen=True)
class TokenStream:
    """The active tokens of a batch, right-aligned: row b holds `lengths[b]` tokens after padding on its left.

    Tokens keep the order of the input, so that index, position and causality agree. The last `trailing` tokens of every
    row come after its prompt: they run through all layers and never halt.
    """

    hidden: torch.Tensor  # [B, n, D]
    slots: torch.Tensor  # [B, n] column of the input that each token came from; -1 for padding
    lengths: tuple[int, ...]  # tokens in each row
    rotary: dict[str, Rotary]  # by kind of layer: cos and sin, each [B or 1, n, d]
    trailing: int = 0

    @property
    def width(self) -> int:
        """n, padding included."""
        return self.hidden.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return min(self.lengths) < self.width

    def row(self, row: int) -> slice:
        """Where in [0, n) the row's tokens lie."""
        return slice(self.width - self.lengths[row], self.width)

    def advance(self, hidden: torch.Tensor) -> "TokenStream":
        """The same tokens with new hidden states."""
        return TokenStream(hidden, self.slots, self.lengths, self.rotary, self.trailing)

    @property
    def prompt(self) -> "TokenStream":
        """The prompts' tokens alone."""
        return self.columns(0, self.width - self.trailing) if self.trailing else self

    def columns(self, begin: int, end: int) -> "TokenStream":
        """The tokens from column `begin` to before column `end` of [0, n), none of which counts as trailing."""
        return TokenStream(
            self.hidden[:, begin:end],
            self.slots[:, begin:end],
            tuple(max(0, end - max(begin, self.width - length)) for length in self.lengths),
            {kind: (cos[:, begin:end], sin[:, begin:end]) for kind, (cos, sin) in self.rotary.items()},
        )

    def last(self, count: int) -> "TokenStream":
        """The last `count` tokens of each row, or all where there are fewer; of a stream without trailing tokens."""
        rows = [torch.arange(max(0, length - count), length, device=self.slots.device) for length in self.lengths]
        return self.keep(rows)

    def followed_by(self, later: "TokenStream") -> "TokenStream":
        """These prompts, then the trailing tokens `later`, which has no padding."""
        return TokenStream(
            torch.cat([self.hidden, later.hidden], dim=1),
            torch.cat([self.slots, later.slots], dim=1),
            tuple(map(sum, zip(self.lengths, later.lengths, strict=True))),
            {kind: _joined(rotary, later.rotary[kind]) for kind, rotary in self.rotary.items()},
            trailing=later.width,
        )

    def preceded_by(self, earlier: "TokenStream") -> "TokenStream":
        """The tokens `earlier` of the same rows, then these; of streams without trailing tokens."""
        rows, device = len(self.lengths), self.hidden.device
        hidden = torch.cat([earlier.hidden.to(device), self.hidden], dim=1)
        both = TokenStream(
            hidden,
            torch.cat([earlier.slots.to(self.slots.device), self.slots], dim=1),
            (hidden.shape[1],) * rows,
            {kind: _joined(earlier.rotary[kind], rotary) for kind, rotary in self.rotary.items()},
        )
        if not (earlier.padded or self.padded):
            return both
        places = torch.arange(both.width, device=self.slots.device)
        return both.keep(
            [
                torch.cat([places[: earlier.width][earlier.row(row)], places[earlier.width :][self.row(row)]])
                for row in range(rows)
            ]
        )

    def rows(self, numbers: list[int]) -> "TokenStream":
        """The rows of these numbers, in this order."""
        return TokenStream(
            self.hidden[numbers],
            self.slots[numbers],
            tuple(self.lengths[number] for number in numbers),
            {
                kind: (cos, sin) if len(cos) == 1 else (cos[numbers], sin[numbers])
                for kind, (cos, sin) in self.rotary.items()
            },
            self.trailing,
        )

    def keep(self, index: list[torch.Tensor]) -> "TokenStream":
        """Of each row b, the prompt's tokens at `index[b]` (ascending), and trailing ones; short rows are padded."""
        if self.trailing:
            index = [self._with_trailing(chosen, row) for row, chosen in enumerate(index)]
        lengths = tuple(len(chosen) for chosen in index)
        width = max(lengths)
        columns = self.slots.new_zeros(len(index), width)
        real = torch.zeros_like(columns, dtype=torch.bool)
        for row, chosen in enumerate(index):
            columns[row, width - lengths[row] :] = chosen.to(columns.device) + self.row(row).start
            real[row, width - lengths[row] :] = True
        hidden = _gather(self.hidden, columns)
        if min(lengths) < width:  # padding copies some token: no value of it may leak, not even a NaN
            hidden = hidden.masked_fill(~real[..., None].to(hidden.device), 0)
        return TokenStream(
            hidden=hidden,
            slots=_gather(self.slots, columns).masked_fill(~real, -1),
            lengths=lengths,
            rotary={kind: (_gather(cos, columns), _gather(sin, columns)) for kind, (cos, sin) in self.rotary.items()},
            trailing=self.trailing,
        )

    def _with_trailing(self, index: torch.Tensor, row: int) -> torch.Tensor:
        length = self.lengths[row]
        return torch.cat([index, torch.arange(length - self.trailing, length, device=index.device)])

    def spread(self, seen: int, width: int) -> torch.Tensor:
        """Hidden states back in the `width` columns of the input, `seen` before them: [B, width, D].

        NaN for halted tokens and padding. Tokens of earlier columns are left out.
        """
        rows, _, size = self.hidden.shape
        column = torch.where(self.slots < seen, width, self.slots - seen).to(self.hidden.device)  # others: a spare one
        full = self.hidden.new_full((rows, width + 1, size), torch.nan)
        return full.scatter_(1, column[..., None].expand(-1, -1, size), self.hidden)[:, :width]


def _joined(rotary: Rotary, later: Rotary) -> Rotary:
    """cos and sin [B or 1, n + m, d] of n tokens and m later ones."""
    rows = max(len(rotary[0]), len(later[0]))
    cos, sin = (
        torch.cat([part.to(after.device).expand(rows, -1, -1), after.expand(rows, -1, -1)], dim=1)
        for part, after in zip(rotary, later, strict=True)
    )
    return cos, sin


def _gather(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """tensor [B or 1, N, ...] at columns [B, n] of its second dimension -> [B, n, ...]."""
    columns = columns.to(tensor.device)
    if len(columns) == 1:
        return tensor.index_select(1, columns[0])
    rows = torch.arange(len(columns), device=tensor.device)[:, None] if len(tensor) > 1 else 0
    return tensor[rows, columns]
