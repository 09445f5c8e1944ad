"""The held-out pictures that accuracy is measured on, each with five questions."""

import random
from dataclasses import dataclass
from itertools import count

import numpy as np

from deltahalt.lab.evaluation.pictures.questions import ASKED, ask
from deltahalt.lab.evaluation.pictures.scenes import HELD_OUT, Scene, make_scene, render

SIDE = 256  # side of a picture in pixels
HALVES = ASKED[::2], ASKED[1::2]  # kinds of questions: pictures get one half or the other in turn


@dataclass(frozen=True)
class Question:
    """A question of one of the kinds in `ASKED`, and its only right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """Pixels, uint8 [SIDE, SIDE, 3], and one question of each kind in one of `HALVES`."""

    pixels: np.ndarray
    questions: tuple[Question, ...]


def held_out_pictures(number: int, *, skip: int = 0) -> list[Picture]:
    """Return pictures that were never trained on, after the first `skip`; an even number has all kinds equally often.

    Scenes that do not have a question of every kind in their half are skipped.
    """
    found: list[tuple[Scene, tuple[Question, ...]]] = []
    for seed in count(HELD_OUT):
        if len(found) == skip + number:
            break
        scene, draw = make_scene(seed, SIDE, SIDE, held_out=True), random.Random(~seed)
        pairs = [(kind, ask(scene, kind, draw)) for kind in HALVES[len(found) % 2]]
        questions = tuple(Question(kind, *pair) for kind, pair in pairs if pair)
        if len(questions) == len(pairs):
            found.append((scene, questions))
    return [Picture(render(scene), questions) for scene, questions in found[skip:]]
