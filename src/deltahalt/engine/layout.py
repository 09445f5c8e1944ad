"""Where the tokens of one call stand in the columns of its input."""

from dataclasses import dataclass

import torch

from deltahalt.engine.decision import ActiveRow
from deltahalt.engine.stream import TokenStream


@dataclass(frozen=True)
class Layout:
    """The columns of one call's input, and the prompts in them.

    width: columns of the input. seen: columns before them, which the cache holds. prompts: tokens of each row's prompt,
    or of its later turn, which continues a cache; empty for a generated token. end: the column after the prompts; those
    after it run through all layers, but no policy sees them. shortest: prompts with fewer tokens than this stay whole.
    kinds: [B, width] what each token is (see `deltahalt.kinds`); None where all are text. dropped: whether visual
    tokens were dropped before the first layer. blocks: [B, width] number of the block within which a token sees later
    ones too, -1 for none. questions: for each row, the positions [q] of its question; empty where it is not known.
    """

    width: int
    seen: int
    prompts: tuple[int, ...]
    end: int
    shortest: int = 0
    kinds: torch.Tensor | None = None
    dropped: bool = False
    blocks: torch.Tensor | None = None
    questions: tuple[torch.Tensor, ...] = ()

    @property
    def later_turn(self) -> bool:
        """Whether the prompts continue a cache."""
        return self.seen > 0 and bool(self.prompts)

    def columns(self, row: int) -> slice:
        """The columns of the row's prompt."""
        return slice(self.end - self.prompts[row], self.end)

    def positions(self, stream: TokenStream, row: int) -> torch.Tensor:
        """The place of each token of the row in its prompt, [n]."""
        return stream.slots[row, stream.row(row)] - self.seen - self.columns(row).start

    def prompt_kinds(self, row: int) -> torch.Tensor | None:
        """What each token of the row's prompt is, [prompt]; None in a batch of text."""
        return None if self.kinds is None else self.kinds[row, self.columns(row)]

    def active_rows(self, stream: TokenStream) -> list[ActiveRow | None]:
        """The active tokens of each row's prompt; None for rows that are too short to halt."""
        prompts = stream.prompt
        return [
            ActiveRow(tokens, self.positions(prompts, row), self.prompt_kinds(row)) if tokens >= self.shortest else None
            for row, tokens in enumerate(self.prompts)
        ]
