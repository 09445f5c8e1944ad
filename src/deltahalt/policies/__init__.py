"""The methods, one a file, and how to name them in text.

`dash`, `dash:start=11,pruning_ratio=0.5`, or stages joined by `+`: `key-norm:start=0.15+window-attention:start=0.5`.
"""

from typing import Any

from deltahalt.policies.base import AnyPolicy, Policy, Progressive
from deltahalt.policies.dart import Dart
from deltahalt.policies.dash import Dash
from deltahalt.policies.dash_layer import DashLayer
from deltahalt.policies.dense import Dense
from deltahalt.policies.fastv import FastV
from deltahalt.policies.forecast import Forecast
from deltahalt.policies.key_norm import KeyNorm
from deltahalt.policies.last_token_attention import LastTokenAttention
from deltahalt.policies.max_sim import MaxSim
from deltahalt.policies.random import Random
from deltahalt.policies.single_input_kv import SingleInputKV
from deltahalt.policies.sparse_vlm import SparseVLM
from deltahalt.policies.text import read_method
from deltahalt.policies.uniform import Uniform
from deltahalt.policies.v2drop import V2Drop
from deltahalt.policies.window_attention import WindowAttention

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Dash,
        DashLayer,
        WindowAttention,
        MaxSim,
        LastTokenAttention,
        KeyNorm,
        FastV,
        Dart,
        V2Drop,
        SparseVLM,
        SingleInputKV,
        Forecast,
        Random,
        Uniform,
        Dense,
    )
}

__all__ = [
    "POLICIES",
    "Dart",
    "Dash",
    "DashLayer",
    "Dense",
    "FastV",
    "Forecast",
    "KeyNorm",
    "LastTokenAttention",
    "MaxSim",
    "Random",
    "SingleInputKV",
    "SparseVLM",
    "Uniform",
    "V2Drop",
    "WindowAttention",
    "parse_policy",
]


def parse_policy(text: str, **overrides: Any) -> AnyPolicy:
    """Build a policy from its name and options, `name:option=value,...`; stages of a Progressive are joined by `+`.

    overrides: options already typed, applied to every stage. Raises PolicyError for an unknown name or option.
    """
    stages = [read_method(part, POLICIES, overrides) for part in text.split("+")]
    return stages[0] if len(stages) == 1 else Progressive(stages)
