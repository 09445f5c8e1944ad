"""What policies did to one prompt, token by token: all that the page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from deltahalt.attach import halting
from deltahalt.documents import build_prompt, to_device
from deltahalt.models import LoadedModel
from deltahalt.policies import parse_policy
from deltahalt.policy import Policy
from deltahalt.report import Report
from deltahalt.selection import spread_over_chunks

CONTEXT = 4  # tokens before one that its text may depend on


@dataclass(frozen=True)
class StageRecord:
    """One decision. layer: after which it halts tokens.

    eligible: runs [begin, end) of positions that it may halt. scores: of each token that is active until then, in the
    order of the prompt; ranked: what they were ranked by instead, the means of chunks, or None where that is the score.
    cut: the lowest that stayed; None where ranking does not decide.
    """

    layer: int
    eligible: list[tuple[int, int]]
    scores: list[float]
    ranked: list[float] | None
    cut: float | None


@dataclass(frozen=True)
class PolicyRecord:
    """One policy. halted: for each token which of `stages` halted it, or -1. speedup: full FLOPs over those spent."""

    policy: str
    speedup: float
    halted: list[int]
    stages: list[StageRecord]


@dataclass(frozen=True)
class PromptRecord:
    """A prompt and its policies. tokens: the text that each adds; joined, they are the prompt."""

    model: str
    layers: int
    question: str
    tokens: list[str]
    policies: list[PolicyRecord]


@torch.inference_mode()
def record_prompt(loaded: LoadedModel, document: str, question: str, policies: Sequence[str]) -> PromptRecord:
    """Prefill the prompt with each policy (see `parse_policy`). Raises what `build_prompt` and `halting` raise."""
    model: Any = loaded.model
    prompt = to_device(build_prompt(loaded.tokenizer, model.config, document, question), model.device)
    records = []
    for text in policies:
        with halting(model, parse_policy(text)) as halted:
            model(**prompt, use_cache=False, logits_to_keep=1)
        deciding = {stage.last: policy for stage in halted.stages for policy in stage.policies}
        records.append(_record(text, halted.report, deciding))
    tokens = pieces(loaded.tokenizer, prompt["input_ids"][0].tolist())
    return PromptRecord(loaded.name, halted.shape.layers, question, tokens, records)


def _record(text: str, report: Report, deciding: dict[int, Policy]) -> PolicyRecord:
    """deciding: the policy that decides at a layer."""
    prompt = report.prompts[0]
    halted = torch.full((prompt,), -1)
    active, stages = torch.arange(prompt), []
    for number, ((layer, (kept,)), (scores,)) in enumerate(zip(report.stages, report.scores, strict=True)):
        assert scores is not None  # a stage is in the report only if it halted something
        stays = torch.isin(active, kept.cpu())
        stages.append(_stage(layer, deciding[layer], active, scores.float().cpu(), stays, prompt))
        halted[active[~stays]] = number
        active = active[stays]
    return PolicyRecord(text, round(report.speedup_bound, 4), halted.tolist(), stages)


def _stage(
    layer: int, policy: Policy, active: torch.Tensor, scores: torch.Tensor, stays: torch.Tensor, prompt: int
) -> StageRecord:
    """active: positions [n] until this decision; stays: which of them stay, [n] bool."""
    eligible = policy.eligible(active, prompt)
    ranked = scores.clone()
    ranked[eligible] = spread_over_chunks(scores[eligible], policy.chunk)
    chosen, dropped = ranked[eligible & stays], ranked[eligible & ~stays]
    decides = len(chosen) > 0 and chosen.min() >= dropped.max() and chosen.max() > dropped.min()
    return StageRecord(
        layer=layer,
        eligible=_runs(policy.eligible(torch.arange(prompt), prompt)),
        scores=_rounded(scores),
        ranked=None if policy.chunk == 1 else _rounded(ranked),
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
