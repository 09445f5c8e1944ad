"""The methods of all stages, by name: what `--policy` takes."""

from collections.abc import Sequence
from dataclasses import fields

from deltahalt.methods.base import Method
from deltahalt.methods.d3 import D3
from deltahalt.methods.gemfilter import GemFilter
from deltahalt.methods.llmlingua2 import LLMLingua2
from deltahalt.methods.snapkv import SnapKV
from deltahalt.policies import POLICIES, parse_policy
from deltahalt.policies.base import AnyPolicy, Policy
from deltahalt.policies.text import read_method

AnyMethod = AnyPolicy | Method

METHODS: dict[str, type[Policy | Method]] = {
    **POLICIES,
    **{method.name: method for method in (LLMLingua2, GemFilter, SnapKV, D3)},
}


def parse_method(text: str) -> AnyMethod:
    """Build a method from its name and options, `name:option=value,...`; stages of policies are joined by `+`.

    Raises PolicyError for an unknown name or option.
    """
    return parse_policy(text) if "+" in text else read_method(text, METHODS, {})


def variants(methods: Sequence[str], starts: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """Each method with each start layer and ratio that it takes and does not name itself, as text for `parse_method`.

    Combinations of stages and `dense` stay as they are. Raises PolicyError for a name, option or value that is wrong.
    """
    texts: list[str] = []
    for text in methods:
        texts += [text] if "+" in text or text == "dense" else _variants(text, starts, ratios)
    for text in texts:
        parse_method(text)
    return list(dict.fromkeys(texts))


def _variants(text: str, starts: Sequence[str], ratios: Sequence[str]) -> list[str]:
    name, _, given = text.partition(":")
    kind = type(read_method(name, METHODS, {}))
    options = _settings("start", starts, kind, given)
    shares = _settings("pruning_ratio", ratios, kind, given)
    every = [",".join(part for part in (start, share, given) if part) for start in options for share in shares]
    return [f"{name}:{settings}" if settings else name for settings in every]


def _settings(option: str, values: Sequence[str], kind: type[Policy | Method], given: str) -> list[str]:
    """The option with each value; none where the method has no such option, or names it itself."""
    takes = option in (field.name for field in fields(kind)) and f"{option}=" not in given
    return [f"{option}={value}" for value in values] if takes else [""]
