"""The policies, one in each file. The package finds every policy file here, and offers its class for import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltahalt.policies.base import Policy, Progressive
    from deltahalt.policies.both_ends import BothEnds
    from deltahalt.policies.dart import Dart
    from deltahalt.policies.dash import Dash
    from deltahalt.policies.dash_frozen import DashFrozen
    from deltahalt.policies.dash_layer import DashLayer
    from deltahalt.policies.dense import Dense
    from deltahalt.policies.fastv import FastV
    from deltahalt.policies.forecast import Forecast
    from deltahalt.policies.key_norm import KeyNorm
    from deltahalt.policies.last_token_attention import LastTokenAttention
    from deltahalt.policies.layer_view import LayerView
    from deltahalt.policies.max_sim import MaxSim
    from deltahalt.policies.random import Random
    from deltahalt.policies.single_input_kv import SingleInputKV
    from deltahalt.policies.sparse_vlm import SparseVLM
    from deltahalt.policies.text import format_policy, override, parse_policy
    from deltahalt.policies.uniform import Uniform
    from deltahalt.policies.v2drop import V2Drop
    from deltahalt.policies.window_attention import WindowAttention

    POLICIES: dict[str, type[Policy]]

__all__ = [
    "POLICIES",
    "BothEnds",
    "Dart",
    "Dash",
    "DashFrozen",
    "DashLayer",
    "Dense",
    "FastV",
    "Forecast",
    "KeyNorm",
    "LastTokenAttention",
    "LayerView",
    "MaxSim",
    "Policy",
    "Progressive",
    "Random",
    "SingleInputKV",
    "SparseVLM",
    "Uniform",
    "V2Drop",
    "WindowAttention",
    "format_policy",
    "override",
    "parse_policy",
]


HOMES = {
    "LayerView": "layer_view",
    **dict.fromkeys(("Policy", "Progressive"), "base"),
    **dict.fromkeys(("format_policy", "override", "parse_policy"), "text"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: POLICIES (those of other packages included), a base class, a text function, or a policy."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    if name == "POLICIES":
        return import_module(f"{__name__}.text").known_policies()
    return import_module(f"{__name__}.discovery").class_called(__name__, name)
