"""Query tokens: the last tokens of a prompt, where a question usually stands, by which a policy scores the others."""

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import LayerView, Policy


def check_window(window: int, kernel: int, policy: Policy) -> None:
    """Raise PolicyError unless `window` is between 1 and the policy's keep_last, and `kernel` is odd and positive."""
    if window < 1:
        raise PolicyError(f"window is {window}; it must be 1 or more")
    if window > policy.keep_last:
        raise PolicyError(
            f"window is {window}, but only the last {policy.keep_last} tokens never halt: set window to "
            f"{policy.keep_last} or less, or keep_last to {window} or more"
        )
    if kernel < 1 or kernel % 2 == 0:
        raise PolicyError(f"kernel is {kernel}; it must be an odd number, 1 or more")


def query_count(window: int, policy: Policy, view: LayerView) -> int:
    """Number of query tokens: those of the last `window` that never halt."""
    if TEXT in SCOPES[policy.scope]:
        return window
    places = policy.may_halt(view).nonzero()
    return min(window, len(view.positions) - 1 - int(places[-1]))
