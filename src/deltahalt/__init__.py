"""deltahalt makes long prompts cheap: it halts prompt tokens inside the model during prefill."""

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.engine.report import Report
from deltahalt.errors import DeltahaltError, InputError, ModelError, PolicyError, UnsupportedError
from deltahalt.methods.applying import Applied, applying
from deltahalt.methods.d3 import D3
from deltahalt.methods.gemfilter import GemFilter
from deltahalt.methods.llmlingua2 import LLMLingua2
from deltahalt.methods.registry import parse_method
from deltahalt.methods.snapkv import SnapKV
from deltahalt.policies import (
    Dart,
    Dash,
    DashFrozen,
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
from deltahalt.policies.base import Policy, Progressive

__version__ = "0.1.0"

__all__ = [
    "D3",
    "Applied",
    "Dart",
    "Dash",
    "DashFrozen",
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
