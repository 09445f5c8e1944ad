"""What the parts of one engine share: the policy, and the plan of the step that runs."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from deltahalt.integrations.vllm.options import Choice, Settings, checked_choice
from deltahalt.integrations.vllm.plan import Piece, Plan, Row
from deltahalt.integrations.vllm.waiting import Waiting
from deltahalt.policies.base import Policy

if TYPE_CHECKING:  # it imports vLLM, which what counts only does without
    from deltahalt.integrations.vllm.decode import DecodingStep

log = logging.getLogger("vllm.deltahalt")  # of vLLM's logger, so that it is shown as vLLM's own lines are

Entrance = tuple[Sequence[str], Callable[[Piece], tuple[Any, torch.Tensor]]]


class Halting:
    """How an engine halts.

    policy: for requests that do not choose otherwise. budget: number of tokens that a layer runs at once. start: the
    layer that decides; those after it are deep. waiting: states of prompts whose last chunk has not come. plan: that of
    the step that runs; None for a step without requests, such as a warm-up. slots: by deep layer, [deep tokens] where
    it writes keys and values in a step in which no token halts. entrances: for each group of deep layers, in a step in
    which tokens halt, their names, and a function of a piece that returns its attention metadata and slots. decoding:
    what these groups have in common in a step in which each request has one token; None until the first has come.
    """

    def __init__(self, settings: Settings, policy: Policy, budget: int) -> None:
        self.shortest = settings.min_prompt_tokens
        self.policy = policy
        self.budget = budget
        self.start = int(policy.start)
        self.waiting = Waiting()
        self.plan: Plan | None = None
        self.slots: dict[str, torch.Tensor] = {}
        self.entrances: list[Entrance] = []
        self.decoding: DecodingStep | None = None

    def begin(self, rows: Sequence[Row] | None) -> None:
        """Start a step with these requests; None for one without requests."""
        self.plan, self.slots, self.entrances = None if rows is None else Plan(rows, self.budget), {}, []
        self.decoding = None

    def enter(self, piece: Piece) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The attention metadata and slots of a piece of this step, by deep layer."""
        entered = [(names, *entrance(piece)) for names, entrance in self.entrances]
        metadata = {name: own for names, own, _ in entered for name in names}
        return metadata, {name: slots for names, _, slots in entered for name in names}

    def choice_of(self, params: Any) -> Choice:
        """What a request with these SamplingParams has chosen."""
        return checked_choice(self.policy, params)

    def row(self, name: str, choice: Choice, prompt: int, computed: int, scheduled: int) -> Row:
        """A request in a step: see `Row`."""
        dropped = choice.dropped(int(prompt), self.shortest)
        return Row(name, choice.policy, int(prompt), choice.prefix, int(computed), int(scheduled), dropped)
