"""Reading options, finding policies, loading models."""

import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltahalt.cli.base import MOST_TOKENS, log
from deltahalt.errors import InputError
from deltahalt.methods.base import Method
from deltahalt.methods.registry import parse_method


def load_model(name: str, **options: Any) -> Any:
    """Load a model, under the host's own progress bars."""
    from deltahalt.loading.models import load

    log.print(f"loading {name}")
    return load(name, **options)


def require_pillow() -> None:
    """Raise InputError where Pillow, which reads pictures, is missing."""
    if find_spec("PIL") is None:
        raise InputError("pictures need Pillow, which the extra `vision` brings: pip install 'deltahalt[vision]'")


def load_vision_model(name: str, **options: Any) -> Any:
    """Load a vision-language model. Raises InputError as `require_pillow` does."""
    require_pillow()
    from deltahalt.loading.models import load_vision

    log.print(f"loading {name}")
    return load_vision(name, **options)


def read_image(file: Path) -> Any:
    """The picture in `file`, in RGB. Raises InputError for one that is missing, no image, or too slim."""
    require_pillow()
    from PIL import Image

    from deltahalt.answering.picture_inputs import require_shape

    try:
        with Image.open(file) as picture:
            require_shape(picture, str(file))
            return picture.convert("RGB")
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {file}: give an image file that is whole, such as a PNG ({error})") from error


def resolve_policy(policy: str, model: Any, options: Mapping[str, Any] = {}) -> str:
    """The text of the policy that `policy` stands for on this model; says so where that is not the text itself.

    options: as in `deltahalt.profile.resolve`.
    """
    from deltahalt.methods.applying import resolve_on

    resolved = resolve_on(model, policy, options)
    parse_method(resolved.text)  # options may not fit what a profile chose
    for line in (*resolved.notes, resolved.text) if resolved.text != policy else ():
        log.print(f"{policy}: {line}", soft_wrap=True)
    return resolved.text


def resolve_methods(named: Iterable[str], model: Any) -> dict[str, Method]:
    """The methods that these texts stand for on this model, each by its own text: see `resolve_policy`."""
    return {text: parse_method(text) for text in (resolve_policy(policy, model) for policy in named)}


def parse_names(text: str, option: str, sep: str | None = None) -> list[str]:
    """Names with blanks between, or `sep`. Raises InputError, which says `option`, where there is none."""
    names = [name.strip() for name in text.split(sep)]
    if not names or not all(names):
        between = "blanks" if sep is None else "commas"
        raise InputError(f"{option} is {text!r}: give one or more, with {between} between")
    return names


def parse_numbers(text: str, most: int = MOST_TOKENS, *, least: int = 1) -> list[int]:
    """Whole numbers from `least` to `most`, with commas between. Raises InputError for anything else."""
    try:
        lengths = [int(length) for length in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is not whole numbers with commas between") from error
    if min(lengths) < least:
        raise InputError(f"{text!r} has a number below {least}")
    if max(lengths) > most:
        raise InputError(f"{text!r} has a number above {most:,}: give smaller ones")
    return lengths


def parse_shares(text: str) -> list[float]:
    """Numbers in (0, 1], with commas between. Raises InputError for anything else."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is not shares with commas between, such as 0.5,0.25") from error
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"{text!r} has a share that is not above 0 and at most 1")
    return shares


def parse_speedups(text: str) -> list[float]:
    """Speedups above 1, with commas between. Raises InputError for anything else."""
    try:
        speedups = [float(speedup) for speedup in text.split(",")]
    except ValueError as error:
        raise InputError(f"speedups {text!r} are not numbers with commas between") from error
    if not all(1 < speedup < math.inf for speedup in speedups):
        raise InputError(f"speedups {text!r} must all be finite numbers above 1")
    return speedups
