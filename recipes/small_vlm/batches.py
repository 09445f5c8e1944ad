"""Batches of scenes with their questions, made by worker processes while the model trains."""

import multiprocessing
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from multiprocessing.sharedctypes import Synchronized

import numpy as np
from model import AFTER_QUESTION
from transformers import PreTrainedTokenizerFast

from deltahalt.lab.evaluation.pictures.questions import ASKED, KINDS, ask
from deltahalt.lab.evaluation.pictures.scenes import Scene, label, make_scene, render, textures

TEXT = 163  # tokens of questions and answers an image; with 5 around the image it makes a multiple of 8
SLOT = 48 * 2**20  # bytes for a batch's pixels
WEIGHTS = {"number": 2.0, "word": 2.0, "chart": 1.5, "relation": 1.5}  # how often a kind is asked; the others: 1


@dataclass
class Batch:
    """Images of one size, each with a row of questions.

    images uint8 [B, height, width, 3]; ids, segment, target [B, TEXT]: tokens, the question's number from 1 (0 is
    padding), and the token to predict or -100; kinds uint8 [B, questions]: index in KINDS plus one; shown
    [B, height / 16, width / 16, 2]: see `scenes.label`.
    """

    images: np.ndarray
    ids: np.ndarray
    segment: np.ndarray
    target: np.ndarray
    kinds: np.ndarray
    shown: np.ndarray


@dataclass(frozen=True)
class Stage:
    """What to draw at a point of the training."""

    sizes: list[tuple[int, int]]
    clutter: float
    small: float
    transcribe: float  # chance that an image's first question is to read or list everything


def stage(progress: float) -> Stage:
    """The curriculum: few large glyphs on plain grounds first, the full task from 40 % of the time."""
    if progress < 0.12:
        sizes = [(128, 128)]
    elif progress < 0.35:
        sizes = [(128, 128), (192, 256), (256, 192), (256, 256)]
    else:
        sizes = [(128, 128), (192, 256), (256, 192), *[(256, 256)] * 5]
    grown = min(1.0, progress / 0.3)
    return Stage(sizes, clutter=0.85 * grown, small=0.2 + 0.8 * grown, transcribe=max(0.2, 1 - 2 * progress))


FINAL = Stage([(256, 256)], clutter=1.0, small=1.0, transcribe=0.0)


class Maker:
    """Makes batches with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tokens: int):
        self.tokens = tokens  # of images and text in a batch
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id

        @lru_cache(maxsize=100_000)
        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text)["input_ids"])

        self.encode = encode

    def make(self, seeds: range, size: tuple[int, int], now: Stage, *, held_out: bool = False) -> Batch:
        """One batch, a scene a seed."""
        scenes = [make_scene(seed, *size, clutter=now.clutter, small=now.small, held_out=held_out) for seed in seeds]
        rows = [self._ask(scene, random.Random(~seed), now) for seed, scene in zip(seeds, scenes, strict=True)]
        ids, segment, target, kinds = (np.stack(column) for column in zip(*rows, strict=True))
        return Batch(
            np.stack([render(scene) for scene in scenes]),
            ids,
            segment,
            target,
            kinds,
            np.stack([label(scene) for scene in scenes]),
        )

    def rows(self, size: tuple[int, int]) -> int:
        """How many images of this size fill a batch."""
        visual = size[0] * size[1] // 256
        return max(1, min(self.tokens // (visual + TEXT), SLOT // (size[0] * size[1] * 3)))

    def _ask(self, scene: Scene, draw: random.Random, now: Stage) -> tuple[np.ndarray, ...]:
        """Questions until the row is full, in turn of every kind and then at random; none twice."""
        ids, segment = np.full(TEXT, self.pad, np.int16), np.zeros(TEXT, np.uint8)
        target, kinds = np.full(TEXT, -100, np.int16), np.zeros(24, np.uint8)
        asked: set[str] = set()
        at = 0
        for kind in self._order(draw, now):
            pair = ask(scene, kind, draw)
            if pair is None or pair[0] in asked:
                continue
            question = self.encode(pair[0]) + self.encode(AFTER_QUESTION)
            answer = (*self.encode(pair[1]), self.end)
            whole = question + answer[:-1]
            if at + len(whole) > TEXT:
                break
            asked.add(pair[0])
            part, begin = slice(at, at + len(whole)), at + len(question) - 1
            ids[part], segment[part] = whole, len(asked)
            target[begin : begin + len(answer)] = answer
            kinds[len(asked) - 1] = list(KINDS).index(kind) + 1
            at += len(whole)
            if len(asked) == len(kinds):
                break
        return ids, segment, target, kinds

    @staticmethod
    def _order(draw: random.Random, now: Stage) -> list[str]:
        first = ["transcribe"] * (draw.random() < now.transcribe)
        every = draw.sample(ASKED, len(ASKED))
        more = draw.choices(ASKED, [WEIGHTS.get(kind, 1.0) for kind in ASKED], k=24)
        return [*first, *every, *more] if draw.random() < 0.5 else [*first, *more]


class Workers:
    """Processes that fill slots of shared memory with images; what is small travels by queue."""

    def __init__(self, maker: Maker, count: int, slots: int):
        textures(held_out=False)  # before the fork, so that it is made once
        context = multiprocessing.get_context("fork")
        self.memory = mmap(-1, slots * SLOT)
        self.progress: Synchronized[float] = context.Value("d", 0.0)
        self._free, self._full = context.Queue(), context.Queue()
        for slot in range(slots):
            self._free.put(slot)
        self._processes = [
            context.Process(target=self._run, args=(maker, worker, count), daemon=True) for worker in range(count)
        ]
        for process in self._processes:
            process.start()

    def _run(self, maker: Maker, worker: int, count: int) -> None:
        draw, seed = random.Random(worker), worker * (2**40 // count)
        while True:
            slot = self._free.get()
            now = stage(self.progress.value)
            size = draw.choice(now.sizes)
            batch = maker.make(range(seed, seed + maker.rows(size)), size, now)
            seed += len(batch.images)
            self._images(slot, batch.images.shape)[:] = batch.images
            shape, batch.images = batch.images.shape, np.empty(0)
            self._full.put((slot, shape, batch))

    def _images(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, int(np.prod(shape)), slot * SLOT).reshape(shape)

    def next(self, use: Callable[[Batch], object]) -> object:
        """What `use` makes of the next batch, whose images live only until it returns."""
        slot, shape, batch = self._full.get()
        batch.images = self._images(slot, shape)
        try:
            return use(batch)
        finally:
            self._free.put(slot)

    def stop(self) -> None:
        """End the processes."""
        for waiting in (self._free, self._full):
            waiting.cancel_join_thread()
        for process in self._processes:
            process.terminate()
