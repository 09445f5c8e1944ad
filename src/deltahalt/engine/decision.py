"""One stage's decision on a batch: cut it into single sequences, have each scored, collect the active sets."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deltahalt.engine.call import Call, Scored
from deltahalt.engine.stream import TokenStream
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import LayerView, Policy, Stage


@dataclass
class Decision:
    """A stage at work on one prefill. rows: by row, the policies that have tokens to halt; other rows stay whole."""

    stage: Stage
    rows: dict[int, tuple[Policy, ...]]
    scores: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)  # by row and scope: [n], summed
    views: dict[int, LayerView] = field(default_factory=dict)  # by row, at the latest layer

    def halts_inside(self, layer: int) -> bool:
        """Whether tokens halt between this layer's attention and its FFN."""
        return layer == self.stage.last and self.stage.boundary == "attention"

    def looked(self, layer: int, lengths: tuple[int, ...], layers: int) -> tuple[int, ...]:
        """For each row of `lengths` tokens, how many of them deeper layers project for a look ahead from `layer`.

        layers: that the model has. A token counts once for each layer looked at.
        """
        ahead = [
            sum(self.stage.ahead(policy, layer, layers) for policy in self.rows.get(row, ()))
            for row in range(len(lengths))
        ]
        return tuple(length * steps for length, steps in zip(lengths, ahead, strict=True))

    def observe(self, view: Callable[[int], LayerView], scored: Scored | None = None) -> None:
        """Add the scores at one more layer; `view(row)` shows it to the policies. scored: known ones; others join."""
        for row, policies in self.rows.items():
            shown = self.views[row] = view(row)
            for policy in policies:
                key, scores = (row, policy.scope), _score(policy, shown, row, scored)
                self.scores[key] = self.scores[key] + scores if key in self.scores else scores

    def row_scores(self) -> dict[int, torch.Tensor]:
        """By row, the score [n] of each token by the policy that decides on it."""
        merged = {}
        for row, policies in self.rows.items():
            view, scores = self.views[row], self.scores[row, policies[0].scope]
            for policy in policies[1:]:
                assert view.kinds is not None  # where all are text, no two scopes are apart
                own = self.scores[row, policy.scope]
                scores = torch.where(policy.in_scope(view.kinds[view.positions]), own, scores)
            merged[row] = scores
        return merged

    def active_sets(self, stream: TokenStream) -> list[torch.Tensor]:
        """For each row, the ascending index of the tokens of `stream` that every policy keeps."""
        device, sets = stream.slots.device, []
        for row, length in enumerate(stream.lengths):
            active = torch.ones(length, dtype=torch.bool, device=device)
            for policy in self.rows.get(row, ()):
                kept = policy.active_set(self.scores[row, policy.scope], self.views[row])
                active &= torch.zeros_like(active).index_fill(0, kept.to(device), True)
            sets.append(active.nonzero().squeeze(1))
        return sets


def _score(policy: Policy, view: LayerView, row: int, scored: Scored | None) -> torch.Tensor:
    if scored is None:
        return policy.score(view)
    key = (view.layer, row, policy.scoring)
    if key not in scored:
        scored[key] = policy.score(view)
    return scored[key]


def decide(stage: Stage, call: Call, stream: TokenStream, min_prompt_tokens: int) -> Decision | None:
    """The stage's decision on a prefill, or None where it would halt nothing."""
    rows = {
        row: tuple(policy for policy in stage.policies if _halts(policy, call, stream, row))
        for row, prompt in enumerate(call.prompts)
        if prompt >= min_prompt_tokens
    }
    rows = {row: policies for row, policies in rows.items() if policies}
    return Decision(stage, rows) if rows else None


def _halts(policy: Policy, call: Call, stream: TokenStream, row: int) -> bool:
    """Whether more tokens of the policy's scope are active in the row than it keeps."""
    prompt, kinds, stream = call.prompts[row], call.prompt_kinds(row), call.prompts_of(stream)
    if kinds is None:
        return TEXT in SCOPES[policy.scope] and policy.kept(prompt) < stream.lengths[row]
    active = policy.in_scope(kinds[call.positions(stream, row)])
    return policy.kept(prompt, kinds) < int(active.sum())
