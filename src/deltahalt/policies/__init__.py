"""The methods, one a file, and how to name them in text.

`dash`, `dash:start=11,pruning_ratio=0.5`, or stages joined by `+`: `key-norm:start=0.15+window-attention:start=0.5`.
"""

from dataclasses import fields
from typing import Any, get_type_hints

from deltahalt.errors import PolicyError
from deltahalt.policies.dash import Dash
from deltahalt.policies.dash_layer import DashLayer
from deltahalt.policies.dense import Dense
from deltahalt.policies.key_norm import KeyNorm
from deltahalt.policies.last_token_attention import LastTokenAttention
from deltahalt.policies.random import Random
from deltahalt.policies.uniform import Uniform
from deltahalt.policies.window_attention import WindowAttention
from deltahalt.policy import AnyPolicy, Policy, Progressive

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (Dash, DashLayer, WindowAttention, LastTokenAttention, KeyNorm, Random, Uniform, Dense)
}

__all__ = [
    "POLICIES",
    "Dash",
    "DashLayer",
    "Dense",
    "KeyNorm",
    "LastTokenAttention",
    "Random",
    "Uniform",
    "WindowAttention",
    "parse_policy",
]


def parse_policy(text: str, **overrides: Any) -> AnyPolicy:
    """Build a policy from its name and options, `name:option=value,...`; stages of a Progressive are joined by `+`.

    overrides: options already typed, applied to every stage. Raises PolicyError for an unknown name or option.
    """
    stages = [_parse_stage(part, overrides) for part in text.split("+")]
    return stages[0] if len(stages) == 1 else Progressive(stages)


def _parse_stage(text: str, overrides: dict[str, Any]) -> Policy:
    name, _, options = text.strip().partition(":")
    if name not in POLICIES:
        raise PolicyError(f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}")
    policy = POLICIES[name]
    settings = dict(_parse_option(policy, option) for option in options.split(",") if option)
    return policy(**settings | _known(policy, overrides))


def _parse_option(policy: type[Policy], text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    key = key.strip().replace("-", "_")
    _known(policy, {key: value})
    hint = get_type_hints(policy)[key]
    try:
        if hint is int:
            return key, int(value)
        if hint is float:
            return key, float(value)
        if hint == float | int:
            return key, float(value) if "." in value else int(value)
    except ValueError as error:
        raise PolicyError(f"{policy.name} option {key} is {value!r}; it must be a number") from error
    return key, value.strip()


def _known(policy: type[Policy], settings: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(policy)]
    for key in settings:
        if key not in names:
            raise PolicyError(f"{policy.name} has no option {key!r}; it has {', '.join(names)}")
    return settings
