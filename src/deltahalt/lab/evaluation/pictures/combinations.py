"""Methods of the ViT and of the decoder, at a share of visual tokens: what `vision-sweep` compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltahalt.errors import PolicyError
from deltahalt.policies import POLICIES, Dense, parse_policy
from deltahalt.policies.cascade import Cascade
from deltahalt.vision.policies import VISION_POLICIES, parse_vision_policy


@dataclass(frozen=True)
class Combination:
    """A method in the ViT, in the decoder, or in both. method: as it was asked for. retain: share of visual tokens.

    vision_policy, policy: what `parse_vision_policy` and `parse_policy` read; None for nothing at this stage.
    """

    method: str
    retain: float
    vision_policy: str | None
    policy: str | None


FULL = Combination("full model", 1.0, None, None)


def combinations(names: Sequence[str], retains: Sequence[float]) -> list[Combination]:
    """Each method at each share of visual tokens: `dash`, `tome`, or `vision-dash/dash` for ViT and decoder.

    A method's own options win. Shares of several stages fall evenly, r^(1/3), r^(2/3), r: those of a `Cascade`, and
    those joined by `+`. Raises PolicyError for a method that acts at neither stage, or does not take its options.
    """
    return [_combination(name, retain) for retain in retains for name in names]


def _combination(name: str, retain: float) -> Combination:
    *before, last = name.split("/")
    if len(before) > 1 or (before and before[0].partition(":")[0] not in VISION_POLICIES):
        raise PolicyError(f"{name!r} is no pair: name a ViT-stage method, `/`, and an LLM-stage method")
    if not before and last.partition(":")[0] in VISION_POLICIES:
        return Combination(name, retain, _vision_policy(last, retain), None)
    vision = _vision_policy(before[0], retain) if before else None
    return Combination(name, retain, vision, _policy(last, retain))


def _vision_policy(text: str, retain: float) -> str:
    whole = _with(text, {"retain": retain})
    parse_vision_policy(whole)
    return whole


def _policy(text: str, retain: float) -> str:
    parts = text.split("+")
    whole = "+".join(_stage(part, retain ** (number / len(parts))) for number, part in enumerate(parts, 1))
    parse_policy(whole)
    return whole


def _stage(text: str, retain: float) -> str:
    shares = {"pruning_ratio": retain}
    if issubclass(POLICIES.get(text.partition(":")[0], Dense), Cascade):
        shares = {"pruning_ratio": retain ** (1 / 3), "second_ratio": retain ** (2 / 3), "third_ratio": retain}
    return _with(text, {"scope": "visual", **{option: round(1 - share, 4) for option, share in shares.items()}})


def _with(text: str, settings: dict[str, Any]) -> str:
    """The method's text with settings that it does not name itself."""
    own = {option.partition("=")[0] for option in text.partition(":")[2].split(",")}
    more = ",".join(f"{name}={value}" for name, value in settings.items() if name not in own)
    return text + ("," if ":" in text else ":") + more if more else text
