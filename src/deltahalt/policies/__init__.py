"""The methods, one a file, and how to name them in text.

`dash`, `dash:start=11,pruning_ratio=0.5`, or stages joined by `+`: `key-norm:start=0.15+window-attention:start=0.5`.
"""

from collections.abc import Sequence
from typing import Any

from deltahalt.options import read_method
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
    stages = [read_method(part, POLICIES, overrides) for part in text.split("+")]
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
