"""Profiles: which policy suits which model, as `deltahalt calibrate` found it, and the default for other models."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.families import family_of
from deltahalt.host.families.base import Module
from deltahalt.policies import parse_policy
from deltahalt.policies.base import AnyPolicy

AUTO = "auto"
AUTO_QUERY_FREE = "auto-query-free"
FORMAT = 1
AHEAD = 12  # layers that a look ahead usually takes in: more lost more on most models, and costs more
EARLY = 12  # of the layers, the part after which late interaction usually decides
# How late interaction usually finds what was asked for. With more askers the end of the document asks, too.
FINDING = {"window": 16, "kernel": 193, "power": 3, "standardize": True}
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
        config, weight = decoder.config, decoder.norm.weight
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
        """Write the profile as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

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
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{source} is no profile: make one with `deltahalt calibrate`") from error

    def choose(self, speedup: float | None) -> str:
        """The policy for at least this speedup; the fastest there is if none reaches it; the default for None."""
        fast_enough = (choice for choice in self.choices if speedup is None or choice.speedup >= speedup)
        return next(fast_enough, self.choices[-1]).policy


def shipped() -> Iterator[Profile]:
    """The profiles that come with the package."""
    for file in sorted(files("deltahalt").joinpath("profiles").iterdir(), key=lambda file: file.name):
        yield Profile.parse(file.read_text(encoding="utf-8"), file.name)


def names_profile(wanted: str) -> bool:
    """Whether a text stands for a profile's choice, not for a policy itself."""
    name = wanted.partition(":")[0]
    return name in (AUTO, AUTO_QUERY_FREE) or name.endswith(".json")


def policy_text(wanted: str, decoder: Module, *, vision: bool = False) -> str:
    """`wanted` with "auto" and profile files replaced by the policy that they stand for on this host's decoder.

    "auto" is the default choice of the profile shipped for the model, or `safe_default` for a model without;
    "auto-query-free" of the one for prompts whose question comes later, or `blind_default`. A path to a .json file is
    the default choice of that profile. `:2.5` behind any asks for at least that speedup.
    vision: whether the decoder is given visual tokens, too.
    Raises InputError for a profile that is missing, broken, or of another model.
    """
    if not names_profile(wanted):
        return wanted
    name, _, speed = wanted.partition(":")
    try:
        speedup = float(speed) if speed else None
    except ValueError as error:
        raise InputError(f"{wanted!r} asks for no speedup: write {name}:2.5 for at least 2.5x") from error
    signature = Signature.of(decoder)
    if not name.endswith(".json"):
        blind = name == AUTO_QUERY_FREE
        fitting = (one for one in shipped() if one.query_free == blind and one.signature.matches(signature))
        known = next(fitting, None)
        if known is not None:
            return known.choose(speedup)
        return blind_default(decoder) if blind else safe_default(decoder, vision=vision)
    path = Path(name)
    if not path.is_file():
        raise InputError(f"there is no profile {path}: make one with `deltahalt calibrate`")
    profile = Profile.parse(path.read_text(encoding="utf-8"), str(path))
    if not profile.signature.matches(signature):
        raise InputError(f"{path} is of another model, {profile.model}: calibrate this one, or use auto")
    return profile.choose(speedup)


def find_policy(wanted: AnyPolicy | str, decoder: Module, *, vision: bool = False) -> AnyPolicy:
    """A policy as it is, or the one that a text stands for: see `policy_text` and `parse_policy`."""
    return parse_policy(policy_text(wanted, decoder, vision=vision)) if isinstance(wanted, str) else wanted


def safe_default(decoder: Module, *, vision: bool = False) -> str:
    """For a model that nobody has calibrated: a third of the tokens halt early, by late interaction.

    Words do not resemble pictures, so with `vision` attention decides, after a look ahead; or where layers are
    offloaded, so that none is possible, half of the tokens halt after half of the layers.
    Raises UnsupportedError for a vision-language model without a layer there that sees the whole prompt.
    """
    windows = family_of(decoder.config).windows(decoder.config)
    if not vision:
        return resembling(len(windows) // EARLY, 0.35)
    offloaded = any(layer.self_attn.o_proj.weight.is_meta for layer in decoder.layers)
    first = len(windows) // (2 if offloaded else 7)
    start = next((layer for layer in range(first, len(windows) - 1) if windows[layer] is None), None)
    if start is None:
        raise UnsupportedError("no layer of this model sees the whole prompt: name a policy, such as max-sim")
    return attended(start, 0.5) if offloaded else attended(start, 0.35, ahead=min(AHEAD, len(windows) - 1 - start))


def blind_default(decoder: Module) -> str:
    """For prompts without their question, to a model that nobody has calibrated: tokens stop after three quarters.

    Where a layer does not see the whole prompt they cannot; a third of the tokens then halt early, at 1.5x.
    """
    windows = family_of(decoder.config).windows(decoder.config)
    return keyed(len(windows) // 6, 0.36) if any(windows) else exit_at(min(3 * len(windows) // 4, len(windows) - 2))


def exit_at(start: int) -> str:
    """All tokens but the latest stop, and serve what they would have become."""
    return f"forecast:start={start},pruning_ratio=1"


def updated(start: int, pruning_ratio: float) -> str:
    """Tokens that a layer changes little halt, whatever will be asked."""
    return _in_chunks("dash-layer", {"start": start, "pruning_ratio": pruning_ratio}, {})


def keyed(start: int, pruning_ratio: float) -> str:
    """Tokens with large keys halt, whatever will be asked."""
    return _in_chunks("key-norm", {"start": start, "pruning_ratio": pruning_ratio, "boundary": "attention"}, {})


def resembling(start: int, pruning_ratio: float, **options: Any) -> str:
    """Late interaction, in the form that lost least where it was measured: see docs/accuracy.md."""
    return _in_chunks("max-sim", {"start": start, "pruning_ratio": pruning_ratio}, FINDING | options)


def attended(start: int, pruning_ratio: float, **options: Any) -> str:
    """Attention of the last window, in the form that lost least where it was measured: see docs/accuracy.md.

    It has no use for the output of the start layer's FFN, so tokens halt before it: the same tokens for less work.
    """
    place = {"start": start, "pruning_ratio": pruning_ratio, "boundary": "attention", "heads": "max"}
    return _in_chunks("window-attention", place, options)


def _in_chunks(name: str, place: dict[str, Any], options: dict[str, Any]) -> str:
    """The policy's text. options: those that are None or 0 are left to the policy."""
    protected = {"chunk": 64, "keep_first": 256, "keep_last": 128}
    settings = place | protected | {name: value for name, value in options.items() if value}
    return f"{name}:" + ",".join(f"{name}={str(value).lower()}" for name, value in settings.items())
