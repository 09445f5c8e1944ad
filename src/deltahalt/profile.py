"""Profiles: the policies that `deltahalt calibrate` chose for a model, and the defaults for models without one."""

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
from deltahalt.policies.base import Policy
from deltahalt.policies.options import options_of
from deltahalt.policies.text import (
    INSTEAD,
    Written,
    format_policy,
    read,
    replace_options,
    update,
    with_options,
    write,
)
from deltahalt.policies.usual import blind_default, safe_default
from deltahalt.profile_names import AUTO, AUTO_QUERY_FREE, names_profile

FORMAT = 1
SIGNED = 16  # number of final-norm weights in a signature, by which models of one shape differ


@dataclass(frozen=True)
class Choice:
    """A policy and what calibration measured for it.

    speedup: ratio of true FLOPs, full model to policy, for the schedule on Qwen2.5-7B's shape and a prompt of 16,384
    tokens. loss: increase in the negative log-likelihood of the full model's own answers, nats per token, mean over the
    samples. exact: share of these answers that stay the same word for word. error: standard error of the loss; None in
    older profiles, which do not store it.
    """

    policy: str
    speedup: float
    loss: float
    exact: float
    error: float | None = None


@dataclass(frozen=True)
class Signature:
    """What a model is recognized by: its type, its shape, and `SIGNED` evenly spaced weights of its final norm.

    The norm of a quantized, converted or fine-tuned copy differs by a few percent; that of another model by more.
    """

    model_type: str
    layers: int
    hidden: int
    norm: tuple[float, ...]

    @classmethod
    def of(cls, decoder: Module) -> "Signature":
        """Return the signature of a host's decoder. Raises UnsupportedError if its final norm is offloaded."""
        config = decoder.config
        weight = family_of(config).final_norm(decoder).weight
        if weight.is_meta:
            raise UnsupportedError(
                "this model's final norm is offloaded, so its profile cannot be found: name a policy"
            )
        norm = weight.detach().float().cpu()[:: max(1, len(weight) // SIGNED)][:SIGNED]
        values = tuple(round(value, 4) for value in norm.tolist())
        return cls(config.model_type, config.num_hidden_layers, config.hidden_size, values)

    def matches(self, other: "Signature") -> bool:
        """Whether both signatures belong to the same model, apart from conversion and fine-tuning."""
        if (self.model_type, self.layers, self.hidden) != (other.model_type, other.layers, other.hidden):
            return False
        size = max(abs(value) for value in self.norm)
        return all(abs(a - b) <= 0.05 * size for a, b in zip(self.norm, other.norm, strict=True))


@dataclass(frozen=True)
class Profile:
    """What calibration chose for one model.

    choices: in ascending order of speed; the first is the default. evidence: the measurements that led to them, and the
    versions and machine they were made with. query_free: whether the choices are for prompts whose question comes after
    the halted prefill.
    """

    model: str
    signature: Signature
    choices: tuple[Choice, ...]
    evidence: dict[str, Any]
    query_free: bool = False

    def write(self, path: Path) -> None:
        """Write the profile as JSON. Raises OutputError if that fails."""
        write_whole(path, (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read the profile in a file. Raises InputError for a file that is missing or is not a profile."""
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
                raise InputError(
                    f"{source} has format {fields['format']!r}, but this version reads {FORMAT}: calibrate again"
                )
            signature = Signature(**fields["signature"] | {"norm": tuple(fields["signature"]["norm"])})
            choices = tuple(Choice(**choice) for choice in fields["choices"])
            return cls(fields["model"], signature, choices, fields["evidence"], fields.get("query_free", False))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{source} is not a profile: make one with `deltahalt calibrate`") from error

    def choose(self, speedup: float | None) -> str:
        """Return the first policy with at least `speedup`, the default for None. Raises InputError if none has it."""
        for choice in self.choices:
            if speedup is None or choice.speedup >= speedup:
                return choice.policy
        raise InputError(
            f"the profile of {self.model} has no policy as fast as {speedup:g}x: the fastest reaches "
            f"{self.choices[-1].speedup:.2f}x. Choose one of {self.speeds}, or calibrate for "
            f"{speedup:g}x with `deltahalt calibrate --target-speedup {speedup:g}`"
        )

    @property
    def speeds(self) -> str:
        """The speedups of all choices, as text for the user."""
        return ", ".join(f"{choice.speedup:.2f}x" for choice in self.choices)


def shipped() -> Iterator[Profile]:
    """Yield the profiles that come with the package."""
    for file in sorted(files("deltahalt").joinpath("profiles").iterdir(), key=lambda file: file.name):
        yield Profile.parse(file.read_text(encoding="utf-8"), file.name)


@dataclass(frozen=True)
class Wanted:
    """A text that names a profile. name: auto, auto-query-free or a file. speedup: the lowest allowed, or None."""

    text: str
    name: str
    speedup: float | None

    @property
    def is_file(self) -> bool:
        """Whether the profile is in a file of the user."""
        return self.name.endswith(".json")

    @classmethod
    def parse(cls, text: str) -> "Wanted":
        """Read `auto`, `auto:2.5` or `profile.json:2.5`. Raises InputError for a speedup that is not 1 or more."""
        name, colon, speed = text.partition(":")
        if not colon:
            return cls(text, name, None)
        try:
            speedup = float(speed)
        except ValueError:
            speedup = math.nan
        if not 1 <= speedup < math.inf:
            raise InputError(
                f"{text!r} has the speedup {speed!r}: write 1 or more, such as {name}:1.7 for at least 1.7x, "
                f"or {name} for the default. {cls(text, name, None)._speeds()}"
            )
        return cls(text, name, speedup)

    def for_many_questions(self) -> str:
        """Return the text for prompts that come before their questions: auto-query-free instead of auto."""
        return self.text.replace(AUTO, AUTO_QUERY_FREE, 1) if self.name == AUTO else self.text

    def _speeds(self) -> str:
        """Return a sentence that lists the available speedups."""
        if self.is_file:
            return f"This profile has {self.read().speeds}"
        fitting = (one for one in shipped() if one.query_free == (self.name == AUTO_QUERY_FREE))
        return "The profiles that come with deltahalt: " + "; ".join(f"{one.model} {one.speeds}" for one in fitting)

    def read(self) -> Profile:
        """Read the profile in the user's file. Raises InputError if it is missing or damaged."""
        return Profile.read(Path(self.name))


@dataclass(frozen=True)
class Resolved:
    """The policy that a text stands for on a model. notes: sentences for the user about where the policy comes from."""

    text: str
    notes: tuple[str, ...] = ()


def is_profile(file: Path) -> bool:
    """Whether a file contains a profile."""
    try:
        Profile.read(file)
    except InputError:
        return False
    return True


def check_profile(text: str, options: Mapping[str, Any] = {}) -> None:
    """Check a profile's text and the options that override its choice, as far as that is possible without a model.

    Raises InputError as `resolve` does. Raises PolicyError for a value that is out of range, of an option that all
    policies have.
    """
    wanted = Wanted.parse(text)
    if wanted.is_file:
        wanted.read().choose(wanted.speedup)
    replace_options(Policy(), {name: value for name, value in options.items() if name in options_of(Policy)})


def resolve(text: str, decoder: Module, *, vision: bool = False, options: Mapping[str, Any] = {}) -> Resolved:
    """Return the policy that `text` stands for on this host's decoder.

    "auto" stands for the default choice of the profile shipped for the model, or for `safe_default` if there is no such
    profile. "auto-query-free" stands for the default choice of the profile for prompts whose question comes later, or
    for `blind_default`. A path to a .json file stands for the default choice of the profile in it. `:2.5` after any of
    them requires a speedup of at least 2.5.

    Args:
        text: A profile, or a policy, which stays as it is.
        decoder: The host's decoder.
        vision: Whether the decoder gets visual tokens.
        options: Options, typed or as text, that override what the profile chose, or add to what a policy's text names.

    Raises:
        InputError: For a profile that is missing, damaged, of another model, or without a policy as fast.
        PolicyError: For options that the policy does not have, or that its own text names too.
    """
    if names_profile(text):
        return _overridden(_choice(Wanted.parse(text), decoder, vision=vision), options)
    return Resolved(with_options(text, options))


def default_text(text: str, layers: int) -> str:
    """Return the policy of "auto" or "auto-query-free" on an uncalibrated model of `layers` layers with full attention.

    Raises InputError for a profile in a file and for a speedup: both need the model itself.
    """
    wanted = Wanted.parse(text)
    if wanted.is_file or wanted.speedup is not None:
        raise InputError(f"{text!r} depends on the model, not on its shape alone: give the model, or write {AUTO}")
    windows = (None,) * layers
    blind = wanted.name == AUTO_QUERY_FREE
    return format_policy(blind_default(windows) if blind else safe_default(windows, vision=False, offloaded=False))


def _choice(wanted: Wanted, decoder: Module, *, vision: bool) -> Resolved:
    """Return the wanted policy. If the model has no profile, a note says so."""
    signature = Signature.of(decoder)
    if wanted.is_file:
        profile = wanted.read()
        if not profile.signature.matches(signature):
            raise InputError(f"{wanted.name} is for another model, {profile.model}: calibrate this one, or use auto")
        return Resolved(profile.choose(wanted.speedup))
    blind = wanted.name == AUTO_QUERY_FREE
    fitting = (one for one in shipped() if one.query_free == blind and one.signature.matches(signature))
    known = next(fitting, None)
    if known is not None:
        return Resolved(known.choose(wanted.speedup))
    if wanted.speedup is not None:
        raise InputError(
            f"{wanted.text!r} requires a speedup, but this model has no profile to choose from: write "
            f"{wanted.name}, or make a profile with `deltahalt calibrate --target-speedup {wanted.speedup:g}`"
        )
    family = family_of(decoder.config)
    windows = family.windows(decoder.config)
    offloaded = any(map(family.offloaded, family.layers(decoder)))
    policy = blind_default(windows) if blind else safe_default(windows, vision=vision, offloaded=offloaded)
    note = "no profile is known for this model, so this policy is the default for uncalibrated models"
    return Resolved(format_policy(policy), (note,))


def _overridden(chosen: Resolved, options: Mapping[str, Any]) -> Resolved:
    """Return what a profile chose with `options` in place of its own; a note for each says what it replaces."""
    if not options:
        return chosen
    stages = read(chosen.text)
    notes = [
        f"{option}={value} replaces {', '.join(_replaced(stage, option) for stage in stages)}"
        for option, value in options.items()
    ]
    return Resolved(write(update(stages, options)), (*chosen.notes, *notes))


def _replaced(stage: Written, option: str) -> str:
    """What `option` replaces in a stage, in words for the user."""
    other = INSTEAD.get(option, option)
    if option not in stage.options and other in stage.options:
        return f"{other}={stage.options[other]}"
    return stage.options.get(option, "the default")
