"""Observations of visual and text tokens in the full model, on pictures drawn from seeds (Fig. 1-3)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.lab.evaluation.observe import Observation, observe_missing, observe_prompt
from deltahalt.lab.evaluation.pictures.samples import Picture
from deltahalt.loading.models import LoadedVisionModel


def observe_pictures(
    loaded: LoadedVisionModel, pictures: Sequence[Picture], rows: Path, *, tick: Callable[[], None] = lambda: None
) -> Iterator[Observation]:
    """Observe the model on every picture and the first question about it; rows as in `observe`."""
    wanted = [(_digest(picture), partial(_observe, loaded, picture)) for picture in pictures]
    return observe_missing(loaded.name, wanted, rows, tick=tick)


def _observe(loaded: LoadedVisionModel, picture: Picture) -> list[Observation]:
    question, image = picture.questions[0], Image.fromarray(picture.pixels)
    inputs = picture_inputs(loaded.model, loaded.tokenizer, loaded.image_processor, [[image]], [question.text])
    return list(observe_prompt(loaded, inputs, sample=_digest(picture), task=question.kind))


def _digest(picture: Picture) -> str:
    """Return a digest of a picture and its first question."""
    return hashlib.sha256(picture.pixels.tobytes() + picture.questions[0].text.encode()).hexdigest()[:16]
