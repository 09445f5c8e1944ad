"""Methods by their texts, as a sweep takes them."""

from collections.abc import Iterable

from deltahalt.methods.base import Method
from deltahalt.methods.registry import parse_method


def named(texts: Iterable[str]) -> dict[str, Method]:
    return {text: parse_method(text) for text in texts}
