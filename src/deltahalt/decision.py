"""One stage's decision on a batch: cut it into single sequences, have each scored, collect the active sets."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deltahalt.policy import LayerView, Stage
from deltahalt.stream import TokenStream


@dataclass
class Decision:
    """A stage at work on one prefill. rows: those that have tokens to halt; the others stay whole."""

    stage: Stage
    rows: tuple[int, ...]
    scores: dict[int, torch.Tensor] = field(default_factory=dict)  # by row, [n], summed over layers
    views: dict[int, LayerView] = field(default_factory=dict)  # by row, at the latest layer

    def halts_inside(self, layer: int) -> bool:
        """Whether tokens halt between this layer's attention and its FFN."""
        return layer == self.stage.last and self.stage.policy.boundary == "attention"

    def looked(self, layer: int, lengths: tuple[int, ...], layers: int) -> tuple[int, ...]:
        """For each row of `lengths` tokens, how many of them deeper layers project for a look ahead from `layer`.

        layers: that the model has. A token counts once for each layer looked at.
        """
        ahead = self.stage.ahead(layer, layers)
        return tuple(length * ahead if row in self.rows else 0 for row, length in enumerate(lengths))

    def observe(self, view: Callable[[int], LayerView]) -> None:
        """Add the scores at one more layer; `view(row)` shows it to the policy."""
        for row in self.rows:
            self.views[row] = view(row)
            scores = self.stage.policy.score(self.views[row])
            self.scores[row] = self.scores[row] + scores if row in self.scores else scores

    def active_sets(self, stream: TokenStream) -> list[torch.Tensor]:
        """For each row, the ascending index of the tokens of `stream` that stay active."""
        every = torch.arange(stream.width, device=stream.slots.device)
        return [
            self.stage.policy.active_set(self.scores[row], self.views[row]) if row in self.rows else every[:length]
            for row, length in enumerate(stream.lengths)
        ]


def decide(stage: Stage, prompts: tuple[int, ...], stream: TokenStream, min_prompt_tokens: int) -> Decision | None:
    """The stage's decision on this batch, or None where it would halt nothing. prompts: tokens in each row's prompt."""
    rows = tuple(
        row
        for row, prompt in enumerate(prompts)
        if prompt >= min_prompt_tokens and stage.policy.kept(prompt) < stream.lengths[row]
    )
    return Decision(stage, rows) if rows else None
