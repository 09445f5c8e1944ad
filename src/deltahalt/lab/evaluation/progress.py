"""How much of a calibration is done, in units of work that are known before it begins."""

from collections.abc import Callable, Sequence

Tick = Callable[[str, float], None]  # what is going on, and the share that is done, in [0, 1]
FULL_MODEL = 2  # runs of the full model on a sample cost about as much as this number of policies


class Share:
    """The share done of several rounds, which never falls. planned: policies and samples expected in each."""

    def __init__(self, planned: Sequence[tuple[int, int]], tick: Tick) -> None:
        self.planned = [_work(policies, samples) for policies, samples in planned]
        self.tick = tick
        self.done = self.round = 0
        self.shown = 0.0

    def begin(self, policies: int, samples: int, what: str) -> Callable[[], None]:
        """Begin the next round, of these counts, which may differ from the plan; call what is returned per sample."""
        self.planned[self.round : self.round + 1] = [_work(policies, samples)]
        self.done = sum(self.planned[: self.round])
        self.round += 1
        self.say(what)

        def advance() -> None:
            self.done += _work(policies, 1)
            self.say(what)

        return advance

    def say(self, what: str) -> None:
        """Report what is going on."""
        self.shown = max(self.shown, min(1.0, self.done / (sum(self.planned) or 1)))
        self.tick(what, self.shown)


def _work(policies: int, samples: int) -> int:
    return samples * (policies + FULL_MODEL)
