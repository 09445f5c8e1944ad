"""Measure methods in the ViT and the decoder of a vision-language model, on the same held-out pictures."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, LogitsProcessor

from deltahalt.answering.picture_inputs import Place, picture_inputs
from deltahalt.engine.report import Report
from deltahalt.host.stand_in import swap_in
from deltahalt.lab.bench.machine import machine_name, number_format
from deltahalt.lab.evaluation.pictures.combinations import FULL, Combination
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.samples import Picture, Question, held_out_pictures
from deltahalt.lab.evaluation.pictures.table import require_answers
from deltahalt.lab.rows.base import append_rows, rows_so_far
from deltahalt.loading.models import LoadedVisionModel
from deltahalt.methods.applying import halting, resolve_on
from deltahalt.policies import Dense, parse_policy
from deltahalt.policies.base import AnyPolicy
from deltahalt.profile_names import names_profile
from deltahalt.vision.attach import find_tower, halting_vision
from deltahalt.vision.engine import HaltedTower
from deltahalt.vision.report import VisionReport

BATCH = 10  # number of pictures in a batch


@dataclass(frozen=True)
class Round:
    """One question about each picture of a batch.

    inputs: the arguments of `generate`. first: index of the batch's first picture.
    """

    inputs: BatchFeature
    questions: tuple[Question, ...]
    first: int


def rounds(loaded: LoadedVisionModel, pictures: Sequence[Picture], place: Place = "after") -> list[Round]:
    """Return all questions about all pictures, batch by batch. place: of the questions, before or after the picture."""
    found = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        pixels = [[Image.fromarray(picture.pixels)] for picture in batch]
        for questions in zip(*(picture.questions for picture in batch), strict=True):
            texts = [question.text for question in questions]
            inputs = picture_inputs(loaded.model, loaded.tokenizer, loaded.image_processor, pixels, texts, place)
            found.append(Round(inputs, questions, start))
    return found


class SeenOnce:
    """A ViT's forward that runs once on each batch of pictures, and returns its stored output when called again.

    tower: the ViT under `halting_vision`, if any. reports: the tower's reports of the runs.
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
        """FLOPs of the ViT as a share of the full ViT's."""
        spent, full = (sum(getattr(report, name) for report in self.reports) for name in ("flops", "full_flops"))
        return spent / full if full else 1.0


@contextmanager
def seeing_once(model: Any, vision: str | None) -> Iterator[SeenOnce]:
    """Make the ViT run once for each batch of pictures in the `with` block, under a ViT-stage policy or in full."""
    with ExitStack() as undo:
        module = find_tower(model)
        tower = undo.enter_context(halting_vision(model, vision)) if vision else None
        seen = SeenOnce(module.forward, tower)
        swap_in(module, "forward", seen, undo)
        yield seen


@torch.inference_mode()
def measure(
    loaded: LoadedVisionModel,
    asked: Sequence[Round],
    combination: Combination,
    seen: SeenOnce,
    pictures: int,
    place: Place = "after",
    skip: int = 0,
) -> VisionRow:
    """Ask all questions under the decoder's policy, with the visual tokens that the ViT in `seen` keeps.

    place, skip: of the questions and pictures, for the row.
    """
    model: Any = loaded.model
    every, right = Counter[str](), Counter[str]()
    by_picture, losses = [0] * pictures, [list[float]() for _ in range(pictures)]
    reports: list[Report] = []
    kept = visual = 0
    for each in asked:
        with halting(model, _policy(combination)) as halted:
            verdicts = _verdicts(loaded, each)
        reports.append(halted.report)
        for row, (question, (exact, nll)) in enumerate(zip(each.questions, verdicts, strict=True)):
            every[question.kind] += 1
            right[question.kind] += exact
            by_picture[each.first + row] += exact
            losses[each.first + row].append(nll)
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
        question=place,
        skip=skip,
        by_picture=tuple(by_picture),
        nll=tuple(map(fmean, losses)),
    )


class Forced(LogitsProcessor):
    """Makes `generate` write given tokens [B, n] after prompts of `prompt` tokens."""

    def __init__(self, tokens: torch.Tensor, prompt: int) -> None:
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = self.tokens[:, input_ids.shape[1] - self.prompt, None]
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


def _verdicts(loaded: LoadedVisionModel, each: Round) -> list[tuple[bool, float]]:
    """Return for each question whether the greedy answer is right, and the NLL of the right one, nats per token.

    The right answer is generated by force, its end included: it is the greedy one just when each of its tokens is the
    most likely one.
    """
    model: Any = loaded.model
    end = loaded.tokenizer.eos_token_id
    texts = [question.answer for question in each.questions]
    answers = [[*ids, end] for ids in loaded.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(map(len, answers))
    padded = torch.tensor([ids + [end] * (longest - len(ids)) for ids in answers], device=model.device)
    out = model.generate(
        **each.inputs,
        max_new_tokens=longest,
        do_sample=False,
        logits_processor=[Forced(padded, each.inputs["input_ids"].shape[1])],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(out.logits, dim=1).float()  # [B, n, vocabulary]
    found = []
    for row, ids in zip(logits, answers, strict=True):
        judged, answer = row[: len(ids)], torch.tensor(ids, device=row.device)
        exact = bool((judged.argmax(dim=-1) == answer).all())
        found.append((exact, float(torch.nn.functional.cross_entropy(judged, answer))))
    return found


def vision_sweep(
    loaded: LoadedVisionModel,
    chosen: Sequence[Combination],
    pictures: int,
    rows: Path,
    *,
    question: Place = "after",
    skip: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[VisionRow]:
    """Measure the full model and every combination on the held-out pictures after the first `skip`.

    Combinations that have a row in the JSONL file `rows` are not measured again; new rows are appended. question: where
    it stands. tick: called after each new row. Yields all rows of this model, these combinations and pictures: first
    those in the file, then new ones, each before it is written. Raises what `halting` raises, and InputError once the
    full model has answered no question right.
    """
    known = rows_so_far(rows, VisionRow)
    same = (loaded.name, pictures, question, skip)
    done = {_key(row): row for row in known if (row.model, row.pictures, row.question, row.skip) == same}
    wanted = list(dict.fromkeys([FULL, *(_resolved(loaded, each) for each in chosen)]))
    missing = [each for each in wanted if _key(each) not in done]
    for each in missing:
        with halting(loaded.model, _policy(each), vision=each.vision_policy):
            pass  # raises for what does not fit this model before anything is measured
    yield from (done[_key(each)] for each in wanted if _key(each) in done)
    if _key(FULL) in done:
        require_answers(done[_key(FULL)])
    asked = rounds(loaded, held_out_pictures(pictures, skip=skip), question) if missing else []
    for vision in dict.fromkeys(each.vision_policy for each in missing):
        with seeing_once(loaded.model, vision) as seen:
            for each in missing:
                if each.vision_policy == vision:
                    row = measure(loaded, asked, each, seen, pictures, question, skip)
                    yield row
                    append_rows(rows, [row])
                    tick()
                    if each is FULL:
                        require_answers(row)


def _resolved(loaded: LoadedVisionModel, one: Combination) -> Combination:
    """Return the combination with the policy that a profile such as `auto` stands for on this model."""
    if one.policy is None or not names_profile(one.policy):
        return one
    return replace(one, policy=resolve_on(loaded.model, one.policy).text)


def _policy(one: Combination) -> AnyPolicy:
    """Return the decoder's policy."""
    return Dense() if one.policy is None else parse_policy(one.policy)


def _key(one: Combination | VisionRow) -> tuple[str, float | None, str | None, str | None]:
    """Return the fields that identify a row among those of the same model and pictures."""
    return one.method, one.retain, one.vision_policy, one.policy
