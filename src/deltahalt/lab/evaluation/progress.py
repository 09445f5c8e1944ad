"""The progress of a calibration, as a share of work that is estimated before it begins."""

from collections.abc import Callable, Sequence

Tick = Callable[[str, float], None]  # called with a description of the work and the share done, in [0, 1]
FULL_MODEL = 2  # the full model's runs on a sample take about as long as this number of policies


class Share:
    """The share of all rounds that is done, which never falls. planned: expected policies and samples of each round."""

    def __init__(self, planned: Sequence[tuple[int, int]], tick: Tick) -> None:
        self.planned = [_work(policies, samples) for policies, samples in planned]
        self.tick = tick
        self.done = self.round = 0
        self.shown = 0.0

    def begin(self, policies: int, samples: int, what: str) -> Callable[[], None]:
        """Begin the next round, whose counts may differ from the plan. Call the returned function after each sample."""
        self.planned[self.round : self.round + 1] = [_work(policies, samples)]
        self.done = sum(self.planned[: self.round])
        self.round += 1
        self.say(what)

        def advance() -> None:
            self.done += _work(policies, 1)
            self.say(what)

        return advance

    def say(self, what: str) -> None:
        """Report a description of the current work, and the share that is done."""
        self.shown = max(self.shown, min(1.0, self.done / (sum(self.planned) or 1)))
        self.tick(what, self.shown)


def _work(policies: int, samples: int) -> int:
    return samples * (policies + FULL_MODEL)
