"""Recorded steps of decoding on a CPU, where a step is computed again in place of a graph that repeats it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deltahalt.engine import decoding, recordable
from deltahalt.engine.decode_step import DecodeStep


@contextmanager
def recorded_steps() -> Iterator[list[DecodeStep]]:
    """Make the CPU a device that can record, inside the block. Yields the step of each token that ran as one."""
    ran: list[DecodeStep] = []
    take = DecodeStep.show

    def show(step: DecodeStep, *args: object) -> None:
        ran.append(step)
        take(step, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordable, "DEVICE", "cpu")
        patch.setattr(decoding, "record", lambda compute, _: compute)
        patch.setattr(DecodeStep, "show", show)
        yield ran
