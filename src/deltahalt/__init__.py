"""deltahalt makes long prompts cheap: it halts prompt tokens inside the model during prefill.

What this package offers is imported when it is first used, so that `import deltahalt` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltahalt.engine.halted import Halted
    from deltahalt.engine.report import Report
    from deltahalt.errors import DeltahaltError, InputError, ModelError, PolicyError, UnsupportedError
    from deltahalt.loading.models import LoadedModel, LoadedVisionModel, load, load_vision
    from deltahalt.methods.applying import Applied, applying, halting
    from deltahalt.methods.base import Method
    from deltahalt.methods.d3 import D3
    from deltahalt.methods.gemfilter import GemFilter
    from deltahalt.methods.llmlingua2 import LLMLingua2
    from deltahalt.methods.registry import parse_method
    from deltahalt.methods.snapkv import SnapKV
    from deltahalt.policies import (
        BothEnds,
        Dart,
        Dash,
        DashFrozen,
        DashLayer,
        Dense,
        FastV,
        Forecast,
        KeyNorm,
        LastTokenAttention,
        LayerView,
        MaxSim,
        Policy,
        Progressive,
        Random,
        SingleInputKV,
        SparseVLM,
        Uniform,
        V2Drop,
        WindowAttention,
        format_policy,
        override,
        parse_policy,
    )
    from deltahalt.vision import (
        DartViT,
        PruMergePlus,
        RandomGroups,
        ToFu,
        ToMe,
        UniformGroups,
        VisionDash,
        VisionPolicy,
        VisionReport,
        VisionZip,
        halting_vision,
        parse_vision_policy,
    )

__version__ = "0.1.0"

__all__ = [
    "D3",
    "Applied",
    "BothEnds",
    "Dart",
    "DartViT",
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
    "LayerView",
    "LoadedModel",
    "LoadedVisionModel",
    "MaxSim",
    "Method",
    "ModelError",
    "Policy",
    "PolicyError",
    "Progressive",
    "PruMergePlus",
    "Random",
    "RandomGroups",
    "Report",
    "SingleInputKV",
    "SnapKV",
    "SparseVLM",
    "ToFu",
    "ToMe",
    "Uniform",
    "UniformGroups",
    "UnsupportedError",
    "V2Drop",
    "VisionDash",
    "VisionPolicy",
    "VisionReport",
    "VisionZip",
    "WindowAttention",
    "applying",
    "format_policy",
    "halting",
    "halting_vision",
    "load",
    "load_vision",
    "override",
    "parse_method",
    "parse_policy",
    "parse_vision_policy",
]

# The module of what is not found in `policies` and `vision`, which have a file for each of theirs.
HOMES = {
    "Halted": "engine.halted",
    "Report": "engine.report",
    **dict.fromkeys(("DeltahaltError", "InputError", "ModelError", "PolicyError", "UnsupportedError"), "errors"),
    **dict.fromkeys(("LoadedModel", "LoadedVisionModel", "load", "load_vision"), "loading.models"),
    **dict.fromkeys(("Applied", "applying", "halting"), "methods.applying"),
    "Method": "methods.base",
    "D3": "methods.d3",
    "GemFilter": "methods.gemfilter",
    "LLMLingua2": "methods.llmlingua2",
    "SnapKV": "methods.snapkv",
    "parse_method": "methods.registry",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, and any other policy by its class, imported when it is first used."""
    if name.startswith("_"):
        raise AttributeError(name)
    homes = (HOMES[name],) if name in HOMES else ("policies", "vision")
    for home in homes:
        try:
            value = getattr(import_module(f"{__name__}.{home}"), name)
        except AttributeError:
            continue
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
