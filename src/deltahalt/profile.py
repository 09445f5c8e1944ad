"""Profiles: which policy suits which model, as `deltahalt calibrate` found it, and the default for other models."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from deltahalt.errors import InputError, UnsupportedError
from deltahalt.files import is_file, write_whole
from deltahalt.host.families import family_of
from deltahalt.host.families.base import Module
from deltahalt.policies.base import AnyPolicy, Policy
from deltahalt.policies.options import options_of
from deltahalt.policies.text import (
    format_policy,
    parse_policy,
    read,
    replace_options,
    require_policy,
    update,
    with_options,
    write,
)
from deltahalt.policies.usual import blind_default, safe_default

AUTO = "auto"
AUTO_QUERY_FREE = "auto-query-free"
FORMAT = 1
SIGNED = 16  # entries of the final norm that tell models of one shape apart


@dataclass(frozen=True)
class Choice:
    """A policy and what calibration saw of it.

    speedup: true-FLOPs ratio of the schedule on Qwen2.5-7B's shape at 16K. loss: how much less likely the full model's
    own answers become, nats a token, mean over the samples. exact: share of them that stay the same word for word.
    error: standard error of the loss; None in profiles from before it was reported.
    """

    policy: str
    speedup: float
    loss: float
    exact: float
    error: float | None = None


@dataclass(frozen=True)
class Signature:
    """What a model is recognized by: its kind and shape, and `SIGNED` even-spaced weights of its final norm.

    Quantized, converted and fine-tuned copies keep the norm within a few percent; models trained apart do not.
    """

    model_type: str
    layers: int
    hidden: int
    norm: tuple[float, ...]

    @classmethod
    def of(cls, decoder: Module) -> "Signature":
        """The signature of a host's decoder. Raises UnsupportedError where its norm is offloaded."""
        config = decoder.config
        weight = family_of(config).final_norm(decoder).weight
        if weight.is_meta:
            raise UnsupportedError("this model's final norm is offloaded, so it cannot be recognized: name a policy")
        norm = weight.detach().float().cpu()[:: max(1, len(weight) // SIGNED)][:SIGNED]
        values = tuple(round(value, 4) for value in norm.tolist())
        return cls(config.model_type, config.num_hidden_layers, config.hidden_size, values)

    def matches(self, other: "Signature") -> bool:
        """Whether both are of the same model, up to conversion and fine-tuning."""
        if (self.model_type, self.layers, self.hidden) != (other.model_type, other.layers, other.hidden):
            return False
        size = max(abs(value) for value in self.norm)
        return all(abs(a - b) <= 0.05 * size for a, b in zip(self.norm, other.norm, strict=True))


@dataclass(frozen=True)
class Profile:
    """What calibration chose for one model: choices in ascending speed, the first the default, and the evidence.

    query_free: chosen for prompts whose question comes after the halted prefill.
    """

    model: str
    signature: Signature
    choices: tuple[Choice, ...]
    evidence: dict[str, Any]
    query_free: bool = False

    def write(self, path: Path) -> None:
        """Write the profile as JSON. Raises OutputError."""
        write_whole(path, (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """The profile in a file. Raises InputError for a file that is missing or is not a profile."""
        if not is_file(path):
            raise InputError(f"there is no profile {path}: make one with `deltahalt calibrate`")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read the profile {path} ({error}): make one with `deltahalt calibrate`"
            ) from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> "Profile":
        """Read what `write` wrote. Raises InputError for anything else, naming `source`."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise InputError(f"{source} is a profile of another format: calibrate again")
            signature = Signature(**fields["signature"] | {"norm": tuple(fields["signature"]["norm"])})
            choices = tuple(Choice(**choice) for choice in fields["choices"])
            return cls(fields["model"], signature, choices, fields["evidence"], fields.get("query_free", False))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{source} is no profile: make one with `deltahalt calibrate`") from error

    def choose(self, speedup: float | None) -> str:
        """The policy for at least this speedup; the default for None. Raises InputError where no choice is as fast."""
        for choice in self.choices:
            if speedup is None or choice.speedup >= speedup:
                return choice.policy
        raise InputError(
            f"the profile of {self.model} has no policy as fast as {speedup:g}x: the fastest reaches "
            f"{self.choices[-1].speedup:.2f}x, and there are {self.speeds}; choose one of these, or calibrate for "
            f"{speedup:g}x with `deltahalt calibrate --target-speedup {speedup:g}`"
        )

    @property
    def speeds(self) -> str:
        """The speedups of all choices, for the user."""
        return ", ".join(f"{choice.speedup:.2f}x" for choice in self.choices)


def shipped() -> Iterator[Profile]:
    """The profiles that come with the package."""
    for file in sorted(files("deltahalt").joinpath("profiles").iterdir(), key=lambda file: file.name):
        yield Profile.parse(file.read_text(encoding="utf-8"), file.name)


@dataclass(frozen=True)
class Wanted:
    """A text that names a profile. name: auto, auto-query-free or a file. speedup: the least, or None."""

    text: str
    name: str
    speedup: float | None

    @property
    def is_file(self) -> bool:
        """Whether the profile is a file of the user's."""
        return self.name.endswith(".json")

    @classmethod
    def parse(cls, text: str) -> "Wanted":
        """Read `auto`, `auto:2.5` or `profile.json:2.5`. Raises InputError where the speedup is not a number from 1."""
        name, colon, speed = text.partition(":")
        if not colon:
            return cls(text, name, None)
        try:
            speedup = float(speed)
        except ValueError:
            speedup = math.nan
        if not 1 <= speedup < math.inf:
            raise InputError(
                f"{text!r} names {speed!r} as a speedup; write a number from 1, such as {name}:1.7 for at least 1.7x, "
                f"or {name} for the default. {cls(text, name, None)._speeds()}"
            )
        return cls(text, name, speedup)

    def for_many_questions(self) -> str:
        """The text of the profile for prompts that come before their questions: of auto, auto-query-free."""
        return self.text.replace(AUTO, AUTO_QUERY_FREE, 1) if self.name == AUTO else self.text

    def _speeds(self) -> str:
        """A sentence about the speedups that there are."""
        if self.is_file:
            return f"This profile has {self.read().speeds}"
        fitting = (one for one in shipped() if one.query_free == (self.name == AUTO_QUERY_FREE))
        return "The profiles that come with deltahalt: " + "; ".join(f"{one.model} {one.speeds}" for one in fitting)

    def read(self) -> Profile:
        """The profile in the user's file. Raises InputError where it is missing or broken."""
        return Profile.read(Path(self.name))


@dataclass(frozen=True)
class Resolved:
    """The policy that a text stands for on a model. notes: sentences for the user about where it comes from."""

    text: str
    notes: tuple[str, ...] = ()


def is_profile(file: Path) -> bool:
    """Whether a file is a profile."""
    try:
        Profile.read(file)
    except InputError:
        return False
    return True


def names_profile(text: str) -> bool:
    """Whether a text stands for a profile's choice, not for a policy itself."""
    name = text.partition(":")[0]
    return name in (AUTO, AUTO_QUERY_FREE) or name.endswith(".json")


def check_profile(text: str, options: Mapping[str, Any] = {}) -> None:
    """Refuse a text of a profile, and options that override its choice, where that is possible without a model.

    Raises InputError as `resolve` does, and PolicyError for a value out of range of an option that all policies have.
    """
    wanted = Wanted.parse(text)
    if wanted.is_file:
        wanted.read().choose(wanted.speedup)
    replace_options(Policy(), {name: value for name, value in options.items() if name in options_of(Policy)})


def resolve(text: str, decoder: Module, *, vision: bool = False, options: Mapping[str, Any] = {}) -> Resolved:
    """`text` with "auto" and profile files replaced by the policy that they stand for on this host's decoder.

    "auto" is the default choice of the profile shipped for the model, or `safe_default` for a model without;
    "auto-query-free" of the one for prompts whose question comes later, or `blind_default`. A path to a .json file is
    the default choice of that profile. `:2.5` after any asks for at least that speedup.

    Args:
        text: What a user names: a profile, or a policy, which stays as it is.
        decoder: The host's decoder.
        vision: Whether the decoder gets visual tokens.
        options: Options, typed or as text, that override what the profile chose, or add to what a policy's text names.

    Raises:
        InputError: For a profile that is missing, broken, of another model, or without a policy as fast.
        PolicyError: For options that the policy does not have, or that its own text names too.
    """
    notes: list[str] = []
    if names_profile(text):
        chosen = _choice(Wanted.parse(text), decoder, vision=vision, notes=notes)
        notes += _overridden(chosen, options)
        return Resolved(write(update(read(chosen), options)) if options else chosen, tuple(notes))
    return Resolved(with_options(text, options))


def default_text(text: str, layers: int) -> str:
    """The policy that "auto" or "auto-query-free" stands for on an uncalibrated model of this many full layers.

    Raises InputError for a profile in a file and for a speedup, which need the model itself.
    """
    wanted = Wanted.parse(text)
    if wanted.is_file or wanted.speedup is not None:
        raise InputError(f"{text!r} depends on the model, not on its shape alone: give the model, or write {AUTO}")
    windows = (None,) * layers
    blind = wanted.name == AUTO_QUERY_FREE
    return format_policy(blind_default(windows) if blind else safe_default(windows, vision=False, offloaded=False))


def policy_text(text: str, decoder: Module, *, vision: bool = False) -> str:
    """The text of the policy that `text` stands for: see `resolve`."""
    return resolve(text, decoder, vision=vision).text


def find_policy(wanted: AnyPolicy | str, decoder: Module, *, vision: bool = False) -> AnyPolicy:
    """A policy as it is, or the one that a text stands for: see `resolve` and `parse_policy`.

    Raises PolicyError for anything else, and what `resolve` raises.
    """
    if isinstance(wanted, str):
        return parse_policy(policy_text(wanted, decoder, vision=vision))
    return require_policy(wanted)


def _choice(wanted: Wanted, decoder: Module, *, vision: bool, notes: list[str]) -> str:
    """The text of the policy wanted. notes: where a note goes that the model has no profile."""
    signature = Signature.of(decoder)
    if wanted.is_file:
        profile = wanted.read()
        if not profile.signature.matches(signature):
            raise InputError(f"{wanted.name} is of another model, {profile.model}: calibrate this one, or use auto")
        return profile.choose(wanted.speedup)
    blind = wanted.name == AUTO_QUERY_FREE
    fitting = (one for one in shipped() if one.query_free == blind and one.signature.matches(signature))
    known = next(fitting, None)
    if known is not None:
        return known.choose(wanted.speedup)
    if wanted.speedup is not None:
        raise InputError(
            f"{wanted.text!r} asks for a speedup, and this model has no profile, so none is known: write "
            f"{wanted.name}, or make a profile with `deltahalt calibrate --target-speedup {wanted.speedup:g}`"
        )
    notes.append("no profile is known for this model, so this is the default for uncalibrated models")
    family = family_of(decoder.config)
    windows = family.windows(decoder.config)
    if blind:
        return format_policy(blind_default(windows))
    offloaded = any(map(family.offloaded, family.layers(decoder)))
    return format_policy(safe_default(windows, vision=vision, offloaded=offloaded))


def _overridden(chosen: str, options: Mapping[str, Any]) -> list[str]:
    """What options replace in the policy that a profile chose, a sentence each."""
    stages = read(chosen)
    return [
        f"{option}={value} replaces {', '.join(stage.options.get(option, 'the default') for stage in stages)}"
        for option, value in options.items()
    ]
