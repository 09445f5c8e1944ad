"""What the parts of one engine share: the policy, and the plan of the step that runs."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from deltahalt.errors import DeltahaltError
from deltahalt.integrations.vllm.options import Settings, request_policy
from deltahalt.integrations.vllm.plan import Plan, Row
from deltahalt.policies.base import Policy

log = logging.getLogger(__name__)


class Halting:
    """How an engine halts.

    policy: for requests that do not choose otherwise; its start is an index. plan: that of the step that runs; None
    for steps without requests, such as warm-up. slots: [deep tokens] where this step's keys and values of deep layers
    are written.
    """

    def __init__(self, settings: Settings, policy: Policy) -> None:
        self.shortest = settings.min_prompt_tokens
        self.policy = policy
        self.plan: Plan | None = None
        self.slots: torch.Tensor | None = None

    def begin(self, rows: Iterable[Row] | None) -> None:
        """Start a step with these requests; None for one without requests."""
        self.plan, self.slots = None if rows is None else Plan(tuple(rows)), None

    def policy_of(self, extra_args: Mapping[str, Any] | None) -> Policy | None:
        """The policy of a request; None where it stays whole.

        A request that is refused does not come here, except with runner V2 of vLLM 0.26: there its prompt stays whole,
        since an error would end the engine.
        """
        try:
            return request_policy(self.policy, extra_args)
        except DeltahaltError as error:
            log.error("a prompt stays whole, since its options cannot be used: %s", error)
            return None

    def row(self, policy: Policy | None, prompt: int, computed: int, scheduled: int) -> Row:
        """A request in a step: see `Row`."""
        kept = prompt if policy is None or prompt < self.shortest else policy.kept(prompt)
        return Row(policy, prompt, int(computed), int(scheduled), prompt - kept)
