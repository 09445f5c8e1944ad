"""The methods of a sweep: each given method at each start layer and pruning ratio."""

from collections.abc import Mapping, Sequence

from deltahalt.methods.base import Method
from deltahalt.methods.registry import known_methods, parse_method
from deltahalt.policies.options import options_of
from deltahalt.policies.text import Written, read, write


def variants(methods: Sequence[str], starts: Sequence[str], ratios: Sequence[str]) -> dict[str, Method]:
    """Return each method at each start layer and ratio, by its text in rows.

    A method that sets an option itself, or does not have it, is not varied in it. Combinations of stages and the full
    model stay as they are. Raises PolicyError for a wrong name, option or value.
    """
    texts = [text for method in methods for text in _crossed(method, {"start": starts, "pruning_ratio": ratios})]
    return {text: parse_method(text) for text in texts}


def _crossed(method: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    parse_method(method)
    stages = read(method)
    if len(stages) > 1:
        return [write(stages)]
    (stage,) = stages
    left_open = [name for name in options_of(known_methods()[stage.name]) if name not in stage.options]
    crossed: list[dict[str, str]] = [{}]
    for name in values:
        if name in left_open:
            crossed = [{**given, name: value} for given in crossed for value in values[name]]
    return [str(Written(stage.name, {**given, **stage.options})) for given in crossed]
