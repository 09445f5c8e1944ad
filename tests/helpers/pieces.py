"""Policies and prompts of the tests that run a prefill in pieces."""

from typing import Any

from deltahalt import (
    BothEnds,
    Dash,
    DashFrozen,
    DashLayer,
    Forecast,
    KeyNorm,
    MaxSim,
    Progressive,
    SingleInputKV,
    WindowAttention,
)

TOKENS = 40
LENGTHS = [(TOKENS,), (TOKENS, 29)]
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
POLICIES = {
    "max-sim": MaxSim(**HALF, window=3, kernel=5),
    "dash": Dash(**HALF),
    "dash-layer": DashLayer(**HALF),
    "window-attention": WindowAttention(**HALF, window=3, ahead=2),
    "window-attention-2-layers": WindowAttention(**HALF | {"start": 2}, window=3, layers=2),
    "key-norm": KeyNorm(**HALF, boundary="attention"),
    "both-ends": BothEnds(**HALF, best=2, reach=0),
    "two stages": Progressive(
        [
            KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
            Dash(start=3, pruning_ratio=0.7, keep_first=1, keep_last=3, boundary="attention"),
        ]
    ),
}
EXIT = SingleInputKV(start=3, keep_last=4)
SERVING = {
    "frozen": DashFrozen(**HALF),
    "frozen inside": DashFrozen(**HALF, boundary="attention"),
    "an exit": EXIT,
    "two exits": Progressive(
        [SingleInputKV(start=1, keep_last=4, pruning_ratio=0.5), SingleInputKV(start=3, keep_last=4)]
    ),
    "a forecast": Forecast(start=2, keep_last=9),
}
