"""The methods that `vision-sweep` compares: in the ViT, the decoder or both, at a share of the visual tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltahalt.errors import PolicyError
from deltahalt.policies.cascade import Cascade
from deltahalt.policies.dense import Dense
from deltahalt.policies.text import Written, known_policies, parse_policy, read, write
from deltahalt.profile import check_profile
from deltahalt.profile_names import names_profile
from deltahalt.vision.policies import known_vision_policies, parse_vision_policy


@dataclass(frozen=True)
class Combination:
    """A method in the ViT, in the decoder, or in both.

    method: its text as the user wrote it. retain: share of visual tokens that stay; None for the method's own.
    vision_policy, policy: the texts in rows of the ViT-stage and the LLM-stage policy; None if there is none.
    """

    method: str
    retain: float | None
    vision_policy: str | None
    policy: str | None


FULL = Combination("full model", 1.0, None, None)


def split_stages(text: str) -> tuple[str | None, str | None]:
    """Return the ViT-stage and LLM-stage policy of a text: `dash`, `vision-dash`, or `vision-dash/dash` for both.

    Raises PolicyError for more than two policies, and if the first of two does not act in the ViT.
    """
    *before, last = text.split("/")
    if len(before) > 1 or (before and not _acts_in_vit(before[0])):
        raise PolicyError(
            f"{text!r} is not a ViT-stage policy, `/` and an LLM-stage policy: write a pair such as vision-dash/dash"
        )
    if before:
        return before[0], last
    return (last, None) if _acts_in_vit(last) else (None, last)


def combinations(names: Sequence[str], retains: Sequence[float]) -> list[Combination]:
    """Return each method at each share of visual tokens: `dash`, `tome`, or `vision-dash/dash` for ViT and decoder.

    Options that a method sets itself stay. A method that leaves no share to set is returned once; so is a profile such
    as `auto`, in place of an LLM-stage policy. Several stages, of a `Cascade` or joined by `+`, each keep the same
    share of the tokens before them: of three stages with a final share r, they keep r^(1/3), r^(2/3) and r of all
    tokens. Raises PolicyError for a method that acts neither in the ViT nor in the decoder, and for options that it
    does not have.
    """
    return list(dict.fromkeys(_combination(name, retain) for retain in retains for name in names))


def _combination(name: str, retain: float) -> Combination:
    stages = _stages(name, retain)
    return Combination(name, None if stages == _stages(name, retain / 2) else retain, *stages)


def _stages(name: str, retain: float) -> tuple[str | None, str | None]:
    """Return the texts in rows of the ViT-stage and the LLM-stage policy."""
    vision, policy = split_stages(name)
    return (
        None if vision is None else _vision_policy(vision, retain),
        None if policy is None else _policy(policy, retain),
    )


def _vision_policy(text: str, retain: float) -> str:
    whole = write(_with(stage, {"retain": retain}) for stage in read(text))
    parse_vision_policy(whole)
    return whole


def _policy(text: str, retain: float) -> str:
    if names_profile(text):
        check_profile(text, {})
        return text
    stages = read(text)
    whole = write(_stage(stage, retain ** (number / len(stages))) for number, stage in enumerate(stages, 1))
    parse_policy(whole)
    return whole


def _stage(stage: Written, retain: float) -> Written:
    shares = {"pruning_ratio": retain}
    if issubclass(known_policies().get(stage.name, Dense), Cascade):
        shares = {"pruning_ratio": retain ** (1 / 3), "second_ratio": retain ** (2 / 3), "third_ratio": retain}
    return _with(stage, {"scope": "visual", **{option: round(1 - share, 4) for option, share in shares.items()}})


def _with(stage: Written, settings: Mapping[str, Any]) -> Written:
    """Return the stage with those of `settings` that it does not set itself."""
    added = {name: str(value) for name, value in settings.items() if name not in stage.options}
    return replace(stage, options={**stage.options, **added})


def _acts_in_vit(text: str) -> bool:
    return not names_profile(text) and read(text)[0].name in known_vision_policies()
