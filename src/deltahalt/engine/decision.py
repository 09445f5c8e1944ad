"""One stage's decision on a batch of single sequences: have each scored, collect the active sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import Policy, Stage
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.selection import nan_message


@dataclass(frozen=True)
class ActiveRow:
    """The active tokens of one sequence.

    prompt: tokens of the whole prompt. positions: [n] place of each active token in it, ascending. kinds: [prompt] what
    each token of the prompt is (see `deltahalt.kinds`); None where all are text.
    """

    prompt: int
    positions: torch.Tensor
    kinds: torch.Tensor | None = None


@dataclass
class Decision:
    """A stage at work on one prefill. rows: by row, the policies that have tokens to halt; other rows stay whole.

    Without any rows, the stage is there for halted tokens of earlier turns that run on.
    """

    stage: Stage
    rows: dict[int, tuple[Policy, ...]]
    scores: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)  # by row and scope: [n], summed
    views: dict[int, LayerView] = field(default_factory=dict)  # by row, at the latest layer

    def halts_inside(self, layer: int) -> bool:
        """Whether tokens halt between this layer's attention and its FFN."""
        return layer == self.stage.last and self.stage.boundary == "attention"

    def lookahead_tokens(self, layer: int, lengths: tuple[int, ...], layers: int) -> tuple[int, ...]:
        """For each row of `lengths` tokens, how many of them deeper layers project for a look-ahead from `layer`.

        layers: the model's number of layers. A token counts once for each layer that projects it.
        """
        ahead = [
            sum(self.stage.ahead(policy, layer, layers) for policy in self.rows.get(row, ()))
            for row in range(len(lengths))
        ]
        return tuple(length * steps for length, steps in zip(lengths, ahead, strict=True))

    def observe(self, view: Callable[[int], LayerView]) -> None:
        """Add the scores at one more layer; `view(row)` shows it to the policies."""
        for row, policies in self.rows.items():
            shown = self.views[row] = view(row)
            for policy in policies:
                key, scores = (row, policy.scope), policy.score(shown)
                self.scores[key] = self.scores[key] + scores if key in self.scores else scores

    def row_scores(self) -> dict[int, torch.Tensor]:
        """By row, the score [n] of each token by the policy that decides on it."""
        merged = {}
        for row, policies in self.rows.items():
            view, scores = self.views[row], self.scores[row, policies[0].scope]
            for policy in policies[1:]:
                assert view.kinds is not None  # two scopes differ only where there are visual tokens
                own = self.scores[row, policy.scope]
                scores = torch.where(policy.in_scope(view.kinds[view.positions]), own, scores)
            merged[row] = scores
        return merged

    def nan_checks(self) -> list[tuple[torch.Tensor, str]]:
        """For each policy and row, whether a score is NaN, and the error's message: read later, without a wait here."""
        return [
            (torch.isnan(self.scores[row, policy.scope]).any(), nan_message(policy.name))
            for row, policies in self.rows.items()
            for policy in policies
        ]

    def active_sets(self, lengths: Sequence[int], device: torch.device) -> list[torch.Tensor]:
        """For each row of `lengths` active tokens, the ascending index of those that every policy keeps."""
        sets = []
        for row, length in enumerate(lengths):
            kept = [
                policy.choose(self.scores[row, policy.scope], self.views[row]).to(device)
                for policy in self.rows.get(row, ())
            ]
            sets.append(_in_all(kept, length) if len(kept) > 1 else kept[0] if kept else _all(length, device))
        return sets


def _all(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(length, device=device)


def _in_all(indexes: list[torch.Tensor], length: int) -> torch.Tensor:
    """The numbers below `length` that are in every one of `indexes`, ascending."""
    counts = torch.zeros(length, dtype=torch.long, device=indexes[0].device)
    for index in indexes:
        counts.index_add_(0, index, torch.ones_like(index))
    return (counts == len(indexes)).nonzero().squeeze(1)


def decide(stage: Stage, rows: Sequence[ActiveRow | None], *, even_whole: bool = False) -> Decision | None:
    """The stage's decision on a prefill. rows: None for those that stay whole.

    None where it would halt nothing, but for `even_whole`.
    """
    deciding = {
        number: tuple(policy for policy in stage.policies if _halts(policy, row))
        for number, row in enumerate(rows)
        if row is not None
    }
    deciding = {number: policies for number, policies in deciding.items() if policies}
    return Decision(stage, deciding) if deciding or even_whole else None


def _halts(policy: Policy, row: ActiveRow) -> bool:
    """Whether more tokens of the policy's scope are active in the row than it keeps."""
    if row.kinds is None:
        return TEXT in SCOPES[policy.scope] and policy.kept(row.prompt) < len(row.positions)
    active = policy.in_scope(row.kinds[row.positions])
    return policy.kept(row.prompt, row.kinds) < int(active.sum())
