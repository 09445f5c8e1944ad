"""The methods, one a file, and how to name them in text.

`dash`, `dash:start=11,pruning_ratio=0.5`, or stages joined by `+`: `key-norm:start=0.15+window-attention:start=0.5`.
"""

from collections.abc import Sequence
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
    "variants",
]


def parse_policy(text: str, **overrides: Any) -> AnyPolicy:
    """Build a policy from its name and options, `name:option=value,...`; stages of a Progressive are joined by `+`.

    overrides: options already typed, applied to every stage. Raises PolicyError for an unknown name or option.
    """
    stages = [_parse_stage(part, overrides) for part in text.split("+")]
    return stages[0] if len(stages) == 1 else Progressive(stages)


def variants(policies: Sequence[str], starts: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """Each policy with each start layer and ratio that it does not name itself, as text for `parse_policy`.

    Combinations of stages and `dense` stay as they are. Raises PolicyError for a name, option or value that is wrong.
    """
    texts: list[str] = []
    for policy in policies:
        texts += [policy] if "+" in policy or policy == Dense.name else _variants(policy, starts, ratios)
    for text in texts:
        parse_policy(text)
    return list(dict.fromkeys(texts))


def _variants(policy: str, starts: Sequence[str], ratios: Sequence[str]) -> list[str]:
    name, _, given = policy.partition(":")
    options = [f"start={start}" for start in starts] if "start=" not in given else [""]
    shares = [f"pruning_ratio={ratio}" for ratio in ratios] if "pruning_ratio=" not in given else [""]
    return [
        f"{name}:" + ",".join(part for part in (start, share, given) if part) for start in options for share in shares
    ]


def _parse_stage(text: str, overrides: dict[str, Any]) -> Policy:
    name, _, options = text.strip().partition(":")
    if name not in POLICIES:
        raise PolicyError(f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}")
    policy = POLICIES[name]
    settings: dict[str, Any] = {}
    for key, value in (_parse_option(policy, option) for option in options.split(",") if option):
        if key in settings:
            raise PolicyError(f"{name} is given {key} twice")
        settings[key] = value
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
        if hint is bool:
            return key, {"true": True, "false": False}[value.strip().lower()]
        if hint == float | int:
            return key, int(value) if value.strip().isdecimal() else float(value)
    except (ValueError, KeyError) as error:
        wanted = {int: "a whole number", bool: "true or false"}.get(hint, "a number")
        raise PolicyError(f"{policy.name} option {key} is {value!r}; it must be {wanted}") from error
    return key, value.strip()


def _known(policy: type[Policy], settings: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(policy)]
    for key in settings:
        if key not in names:
            raise PolicyError(f"{policy.name} has no option {key!r}; it has {', '.join(names)}")
    return settings
