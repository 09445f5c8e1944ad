"""Query tokens: the last tokens of a prompt, where a question usually stands, by which a policy scores the others."""

from typing import Any

import torch

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.options import require_at_least, require_odd


def check_window(policy: Any) -> None:
    """Raise PolicyError unless a policy's window is between 1 and its keep_last, and its kernel is odd and positive."""
    require_at_least(policy, 1, "window")
    if policy.window > policy.keep_last:
        raise PolicyError(
            f"window is {policy.window}, but only the last {policy.keep_last} tokens never halt: set window to "
            f"{policy.keep_last} or less, or keep_last to {policy.window} or more"
        )
    require_odd(policy, "kernel")


def last_tokens(count: int, view: LayerView) -> torch.Tensor:
    """Index [count] of the last active tokens."""
    n = len(view.positions)
    return torch.arange(n - count, n, device=view.positions.device)


def query_count(window: int, policy: Policy, view: LayerView) -> int:
    """Number of query tokens: those of the last `window` that never halt."""
    if TEXT in SCOPES[policy.scope]:
        return window
    places = policy.may_halt(view).nonzero()
    return min(window, len(view.positions) - 1 - int(places[-1]))
