"""The last tokens of a prompt, which ask for others: a question stands at the end."""

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import LayerView, Policy


def check_asking(window: int, kernel: int, policy: Policy) -> None:
    """Raise PolicyError unless the last `window` tokens, 1 or more, are kept in any case, and `kernel` is odd.

    kernel: how many neighbours share what one of them is asked for.
    """
    if not 1 <= window <= policy.keep_last:
        raise PolicyError(f"window is {window}; its tokens must be kept: 1 to keep_last ({policy.keep_last})")
    if kernel < 1 or kernel % 2 == 0:
        raise PolicyError(f"kernel is {kernel}; it must be odd and positive")


def askers(window: int, policy: Policy, view: LayerView) -> int:
    """How many of the last tokens ask: those of the window that are kept in any case."""
    if TEXT in SCOPES[policy.scope]:
        return window
    may_halt = policy.eligible_and_count(view)[0].nonzero()
    return min(window, len(view.positions) - 1 - int(may_halt[-1]))
