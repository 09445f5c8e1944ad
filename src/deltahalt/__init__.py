"""deltahalt makes long prompts cheap: it halts prompt tokens inside the model during prefill."""

from deltahalt.applying import Applied, applying
from deltahalt.decode.d3 import D3
from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.engine.report import Report
from deltahalt.errors import DeltahaltError, InputError, ModelError, PolicyError, UnsupportedError
from deltahalt.kv.snapkv import SnapKV
from deltahalt.methods import parse_method
from deltahalt.policies import (
    Dart,
    Dash,
    DashLayer,
    Dense,
    FastV,
    Forecast,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Random,
    SingleInputKV,
    SparseVLM,
    Uniform,
    V2Drop,
    WindowAttention,
    parse_policy,
)
from deltahalt.policy import Policy, Progressive
from deltahalt.prompt.gemfilter import GemFilter
from deltahalt.prompt.llmlingua2 import LLMLingua2

__version__ = "0.1.0"

__all__ = [
    "D3",
    "Applied",
    "Dart",
    "Dash",
    "DashLayer",
    "DeltahaltError",
    "Dense",
    "FastV",
    "Forecast",
    "GemFilter",
    "Halted",
    "InputError",
    "KeyNorm",
    "LLMLingua2",
    "LastTokenAttention",
    "MaxSim",
    "ModelError",
    "Policy",
    "PolicyError",
    "Progressive",
    "Random",
    "Report",
    "SingleInputKV",
    "SnapKV",
    "SparseVLM",
    "Uniform",
    "UnsupportedError",
    "V2Drop",
    "WindowAttention",
    "applying",
    "halting",
    "parse_method",
    "parse_policy",
]
