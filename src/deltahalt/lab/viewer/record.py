"""What policies did to one prompt, token by token, and the answers: all that the page shows."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from deltahalt.answering.documents import build_prompt, check_question, to_device
from deltahalt.answering.generation import generate_timed
from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.engine.report import Report
from deltahalt.kinds import DROPPED, IMAGE, TEXT
from deltahalt.lab.evaluation.pictures.combinations import split_stages
from deltahalt.loading.models import LoadedModel, LoadedVisionModel, end_tokens
from deltahalt.methods.applying import halting
from deltahalt.policies import Dense, parse_policy
from deltahalt.policies.base import Boundary, Stage
from deltahalt.policies.selection import spread_over_chunks

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT = 4  # tokens before one that its text may depend on


@dataclass(frozen=True)
class StageRecord:
    """One decision. layer: after which it halts tokens; -1 for the ViT, which shows no scores.

    boundary: whether they halt after the whole layer ("block"), or between its attention and its FFN ("attention").
    scope: runs [begin, end) of positions that it is about; eligible: runs of those that may halt, the others being
    protected. scores: of each token that is active until then, in the order of the prompt; ranked: what they were
    ranked by instead, the means of chunks, or None where that is the score. cut: the lowest that stayed; None where
    no single one decides.
    """

    layer: int
    boundary: Boundary
    scope: list[tuple[int, int]]
    eligible: list[tuple[int, int]]
    scores: list[float]
    ranked: list[float] | None
    cut: float | None


@dataclass(frozen=True)
class AnswerRecord:
    """What the model generated. tokens: how many. cut: whether the limit ended it, and not the model."""

    text: str
    tokens: int
    cut: bool


@dataclass(frozen=True)
class PolicyRecord:
    """One policy. halted: for each token which of `stages` halted it, or -1. speedup: full FLOPs over those spent.

    answer: None where answers are left out.
    """

    policy: str
    speedup: float
    halted: list[int]
    stages: list[StageRecord]
    answer: AnswerRecord | None


@dataclass(frozen=True)
class ImageRecord:
    """A picture, as a data URI, and its visual tokens: from token `begin` on, `rows` lines of `columns` each."""

    uri: str
    begin: int
    rows: int
    columns: int


@dataclass(frozen=True)
class PromptRecord:
    """A prompt and its policies. tokens: the text that each adds, none for visual ones; joined, they are the prompt.

    answer: the full model's; None where answers are left out.
    """

    model: str
    layers: int
    question: str
    tokens: list[str]
    policies: list[PolicyRecord]
    images: list[ImageRecord]
    answer: AnswerRecord | None


Generate = Callable[[], torch.Tensor]  # prefills the prompt and returns the new tokens [n], n >= 1


@torch.inference_mode()
def record_prompt(
    loaded: LoadedModel, document: str, question: str, policies: Sequence[str], *, max_new_tokens: int = 0
) -> PromptRecord:
    """Prefill the prompt with each policy (see `parse_policy`), and answer it as `ask` does.

    max_new_tokens: the longest answer; 0 leaves answers out. Raises what `build_prompt` and `halting` raise.
    """
    model: Any = loaded.model
    prompt = to_device(build_prompt(loaded.tokenizer, model.config, document, question), model.device)
    tokens = pieces(loaded.tokenizer, prompt["input_ids"][0].tolist())

    def generate() -> torch.Tensor:
        return generate_timed(model, prompt, max(1, max_new_tokens)).tokens[0]

    run = _Run(model, loaded.tokenizer, generate, max_new_tokens)
    records = [run.halted(text, torch.full((len(tokens),), TEXT)) for text in policies]
    return PromptRecord(loaded.name, _layers(model), question, tokens, records, [], run.full())


@torch.inference_mode()
def record_pictures(
    loaded: LoadedVisionModel,
    pictures: Sequence["Image"],
    document: str,
    question: str,
    policies: Sequence[str],
    *,
    max_new_tokens: int = 0,
) -> PromptRecord:
    """As `record_prompt`, with pictures before the text; each policy as in `split_stages`.

    Raises what `check_question`, `picture_inputs` and `halting` raise.
    """
    check_question(question)
    model: Any = loaded.model
    text = f"{document}\n\n{question}" if document else question
    inputs = picture_inputs(model, loaded.tokenizer, loaded.image_processor, [pictures], [text])
    ids = inputs["input_ids"][0].cpu()
    visual = ids == model.config.image_token_id

    def generate() -> torch.Tensor:
        whole = model.generate(**inputs, max_new_tokens=max(1, max_new_tokens), do_sample=False)
        return whole[0, len(ids) :]

    run = _Run(model, loaded.tokenizer, generate, max_new_tokens)
    records = [run.halted(policy, torch.where(visual, IMAGE, TEXT)) for policy in policies]
    shown = zip(pieces(loaded.tokenizer, ids.tolist()), visual.tolist(), strict=True)
    tokens = ["" if hidden else piece for piece, hidden in shown]
    images, places = [], visual.nonzero().flatten().tolist()
    for picture, (_, height, width) in zip(pictures, inputs["image_grid_thw"].tolist(), strict=True):
        rows, columns = (side // loaded.image_processor.merge_size for side in (height, width))
        size = (width * loaded.image_processor.patch_size, height * loaded.image_processor.patch_size)
        images.append(ImageRecord(_data_uri(picture.convert("RGB").resize(size)), places[0], rows, columns))
        places = places[rows * columns :]
    return PromptRecord(loaded.name, _layers(model), question, tokens, records, images, run.full())


def _layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _data_uri(picture: "Image") -> str:
    """The picture as the model sees it, in PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class _Run:
    """One prompt, ready to be answered under each policy. limit: the longest answer; 0 for none."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    generate: Generate
    limit: int

    def halted(self, text: str, kinds: torch.Tensor) -> PolicyRecord:
        """kinds: what each token is, [prompt]."""
        vision, policy = split_stages(text)
        with halting(self.model, Dense() if policy is None else parse_policy(policy), vision=vision) as halted:
            answer = self._answer(self.generate())
        return _record(text, halted.report, {stage.last: stage for stage in halted.stages}, kinds, answer)

    def full(self) -> AnswerRecord | None:
        """The full model's answer."""
        return self._answer(self.generate()) if self.limit else None

    def _answer(self, tokens: torch.Tensor) -> AnswerRecord | None:
        if not self.limit:
            return None
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        return AnswerRecord(text, len(tokens), int(tokens[-1]) not in end_tokens(self.model))


def _record(
    text: str, report: Report, deciding: dict[int, Stage], kinds: torch.Tensor, answer: AnswerRecord | None
) -> PolicyRecord:
    """deciding: the stage that decides at a layer."""
    prompt = report.prompts[0]
    halted = torch.full((prompt,), -1)
    active, stages = torch.arange(prompt), []
    for number, ((layer, (kept,)), (scores,)) in enumerate(zip(report.stages, report.scores, strict=True)):
        stays = torch.isin(active, kept.cpu())
        if scores is None:  # dropped in the ViT: a stage of the decoder is in the report only if it halted something
            visual = _runs(kinds == IMAGE)
            stages.append(StageRecord(layer, "block", visual, visual, [], None, None))
            kinds = torch.where(torch.isin(torch.arange(prompt), kept.cpu()), kinds, DROPPED)
        else:
            stages.append(_stage(deciding[layer], active, scores.float().cpu(), stays, kinds))
        halted[active[~stays]] = number
        active = active[stays]
    return PolicyRecord(text, round(report.speedup_bound, 4), halted.tolist(), stages, answer)


def _stage(
    stage: Stage, active: torch.Tensor, scores: torch.Tensor, stays: torch.Tensor, kinds: torch.Tensor
) -> StageRecord:
    """active: positions [n] until this decision; stays: which of them stay, [n] bool."""
    policies = stage.policies
    scope, every = torch.zeros(2, len(kinds), dtype=torch.bool)
    ranked = scores.clone()
    for policy in policies:  # each on the tokens of its own scope
        may = policy.eligible(torch.arange(len(kinds)), len(kinds), kinds)
        ranked[may[active]] = spread_over_chunks(scores[may[active]], policy.chunk)
        scope |= policy.in_scope(kinds)
        every |= may
    eligible = every[active]
    chosen, dropped = ranked[eligible & stays], ranked[eligible & ~stays]
    decides = len(policies) == 1 and len(chosen) > 0 and chosen.min() >= dropped.max() and chosen.max() > dropped.min()
    return StageRecord(
        layer=stage.last,
        boundary=stage.boundary,
        scope=_runs(scope),
        eligible=_runs(every),
        scores=_rounded(scores),
        ranked=None if all(policy.chunk == 1 for policy in policies) else _rounded(ranked),
        cut=_rounded(chosen.min()[None])[0] if decides else None,
    )


def _runs(members: torch.Tensor) -> list[tuple[int, int]]:
    """Where `members` [n] bool is true, as runs [begin, end)."""
    runs = []
    for _, group in groupby(enumerate(members.nonzero().flatten().tolist()), key=lambda pair: pair[1] - pair[0]):
        run = [position for _, position in group]
        runs.append((run[0], run[-1] + 1))
    return runs


def _rounded(values: torch.Tensor) -> list[float]:
    """Five significant digits: enough to read, and half the page."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds to what comes before; a character made of several tokens belongs to its last."""
    texts: list[str] = []
    begin = shown = 0  # decoding starts at `begin`, where a few tokens before `shown` give it context
    for end in range(1, len(ids) + 1):
        before, now = (str(tokenizer.decode(ids[begin:stop])) for stop in (shown, end))
        whole = not now.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids)
        texts.append(now[len(before) :] if whole else "")
        if whole:
            begin, shown = max(begin, end - CONTEXT), end
    return texts
