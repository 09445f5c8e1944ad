"""Methods in the ViT and in the decoder of a vision-language model, on the same held-out pictures and questions."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.engine.report import Report
from deltahalt.host.stand_in import swap_in
from deltahalt.lab.bench.machine import machine_name, number_format
from deltahalt.lab.evaluation.pictures.combinations import FULL, Combination
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.samples import Picture, Question, held_out_pictures
from deltahalt.lab.rows.base import append_rows, rows_so_far
from deltahalt.loading.models import LoadedVisionModel
from deltahalt.methods.applying import halting
from deltahalt.policies import Dense, parse_policy
from deltahalt.policies.base import AnyPolicy
from deltahalt.vision.attach import find_tower, halting_vision
from deltahalt.vision.engine import HaltedTower
from deltahalt.vision.report import VisionReport

BATCH = 10  # pictures


@dataclass(frozen=True)
class Round:
    """One question to each picture of a batch. inputs: what `generate` takes."""

    inputs: BatchFeature
    questions: tuple[Question, ...]


def rounds(loaded: LoadedVisionModel, pictures: Sequence[Picture]) -> list[Round]:
    """All questions about all pictures, batch by batch."""
    found = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        pixels = [[Image.fromarray(picture.pixels)] for picture in batch]
        for questions in zip(*(picture.questions for picture in batch), strict=True):
            texts = [question.text for question in questions]
            inputs = picture_inputs(loaded.model, loaded.tokenizer, loaded.image_processor, pixels, texts)
            found.append(Round(inputs, questions))
    return found


class SeenOnce:
    """A ViT's forward that runs once on each batch of pictures and then gives again what it gave.

    reports: of those runs, for a ViT under `halting_vision`, which is `tower`.
    """

    def __init__(self, forward: Callable[..., Any], tower: HaltedTower | None) -> None:
        self.forward, self.tower = forward, tower
        self.seen: list[tuple[torch.Tensor, Any]] = []
        self.reports: list[VisionReport] = []

    def __call__(self, hidden_states: torch.Tensor, **options: Any) -> Any:
        for pixels, output in self.seen:
            if torch.equal(pixels, hidden_states):
                return copy.copy(output)  # the host splits the features in place
        output = self.forward(hidden_states, **options)
        self.seen.append((hidden_states, copy.copy(output)))
        if self.tower is not None:
            self.reports.append(self.tower.report)
        return output

    @property
    def flops(self) -> float:
        """FLOPs of the ViT relative to the full one."""
        spent, full = (sum(getattr(report, name) for report in self.reports) for name in ("flops", "full_flops"))
        return spent / full if full else 1.0


@contextmanager
def seeing_once(model: Any, vision: str | None) -> Iterator[SeenOnce]:
    """Run the ViT under a ViT-stage policy, or in full, once for each batch of pictures inside the `with` block."""
    with ExitStack() as undo:
        module = find_tower(model)
        tower = undo.enter_context(halting_vision(model, vision)) if vision else None
        seen = SeenOnce(module.forward, tower)
        swap_in(module, "forward", seen, undo)
        yield seen


@torch.inference_mode()
def measure(
    loaded: LoadedVisionModel, asked: Sequence[Round], combination: Combination, seen: SeenOnce, pictures: int
) -> VisionRow:
    """All questions under the policy in the decoder, with what the ViT in `seen` leaves of the pictures."""
    model: Any = loaded.model
    every, right = Counter[str](), Counter[str]()
    reports: list[Report] = []
    kept = visual = 0
    for each in asked:
        with halting(model, _policy(combination)) as halted:
            answers = _answers(loaded, each)
        reports.append(halted.report)
        for row, question in enumerate(each.questions):
            every[question.kind] += 1
            right[question.kind] += answers[row] == question.answer
            ids = each.inputs["input_ids"][row][each.inputs["attention_mask"][row].bool()].cpu()
            shown = ids == model.config.image_token_id
            kept, visual = kept + int(shown[halted.report.kept[row]].sum()), visual + int(shown.sum())
    return VisionRow(
        model=loaded.name,
        method=combination.method,
        retain=combination.retain,
        vision_policy=combination.vision_policy,
        policy=combination.policy,
        pictures=pictures,
        asked=dict(every),
        right=dict(right),
        kept=kept / visual,
        vision_flops=seen.flops,
        flops=sum(report.flops for report in reports) / sum(report.full_flops for report in reports),
        dtype=number_format(model),
        machine=machine_name(model.device),
    )


def _answers(loaded: LoadedVisionModel, each: Round) -> list[str]:
    """What the model says, greedily; one token more than the longest right answer has, so that none is cut."""
    model: Any = loaded.model
    right = loaded.tokenizer([question.answer for question in each.questions], add_special_tokens=False)["input_ids"]
    tokens = model.generate(**each.inputs, max_new_tokens=max(map(len, right)) + 1, do_sample=False)
    new = tokens[:, each.inputs["input_ids"].shape[1] :]
    return loaded.tokenizer.batch_decode(new, skip_special_tokens=True)


def vision_sweep(
    loaded: LoadedVisionModel,
    chosen: Sequence[Combination],
    pictures: int,
    rows: Path,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[VisionRow]:
    """Measure the full model and every combination on the first held-out pictures.

    Rows are added to the JSONL file as they come, and those in it are not measured again. tick: called after each.
    Yields all rows of this model, these combinations and pictures, each before it is written; those that were in the
    file come first. Raises what both seams raise.
    """
    known = rows_so_far(rows, VisionRow)
    done = {_key(row): row for row in known if (row.model, row.pictures) == (loaded.name, pictures)}
    wanted = list(dict.fromkeys([FULL, *chosen]))
    missing = [each for each in wanted if _key(each) not in done]
    for each in missing:
        with halting(loaded.model, _policy(each), vision=each.vision_policy):
            pass  # refuses what does not fit this model before anything is measured
    yield from (done[_key(each)] for each in wanted if _key(each) in done)
    asked = rounds(loaded, held_out_pictures(pictures)) if missing else []
    for vision in dict.fromkeys(each.vision_policy for each in missing):
        with seeing_once(loaded.model, vision) as seen:
            for each in missing:
                if each.vision_policy == vision:
                    row = measure(loaded, asked, each, seen, pictures)
                    yield row
                    append_rows(rows, [row])
                    tick()


def _policy(one: Combination) -> AnyPolicy:
    """The policy in the decoder."""
    return Dense() if one.policy is None else parse_policy(one.policy)


def _key(one: Combination | VisionRow) -> tuple[str, float, str | None, str | None]:
    """What two rows of the same model and pictures differ in."""
    return one.method, one.retain, one.vision_policy, one.policy
