"""deltahalt makes long prompts cheap: it halts prompt tokens inside the model during prefill."""

from deltahalt.attach import halting
from deltahalt.engine import Halted
from deltahalt.errors import DeltahaltError, InputError, ModelError, PolicyError, UnsupportedError
from deltahalt.policies import (
    Dash,
    DashLayer,
    Dense,
    KeyNorm,
    LastTokenAttention,
    Random,
    Uniform,
    WindowAttention,
    parse_policy,
)
from deltahalt.policy import Policy, Progressive
from deltahalt.report import Report

__version__ = "0.1.0"

__all__ = [
    "Dash",
    "DashLayer",
    "DeltahaltError",
    "Dense",
    "Halted",
    "InputError",
    "KeyNorm",
    "LastTokenAttention",
    "ModelError",
    "Policy",
    "PolicyError",
    "Progressive",
    "Random",
    "Report",
    "Uniform",
    "UnsupportedError",
    "WindowAttention",
    "halting",
    "parse_policy",
]
