"""What stands between a look ahead and the full model: who asks for tokens, and how well the answer is read.

usage: who_asks.py MODEL SAMPLES.jsonl ROWS.jsonl [--layer LAYER] [--ahead LAYERS] [--targets SPEEDUP,...]
                   [--dtype DTYPE] [--device DEVICE]

Window attention decides at one layer, looking ahead at deeper ones, as calibrated policies do. Its scores are then
taken from elsewhere, and the same number of tokens stays:

asked by a draft      16 tokens that the model goes on with behind a prefill halted at 2.5x, asking beside the window
asked by its answer   16 tokens that the full model goes on with
asked by the answer   the first 16 tokens of the answer wanted, which nobody knows beforehand
scored exactly        the same layers' attention in the full model, in place of a look ahead

Rows are those of a sweep (`deltahalt report ROWS.jsonl`), so a speedup says nothing of what asking costs. Prompts of
which nothing would halt are left out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from deltahalt import Dense, Policy, WindowAttention, halting, parse_policy
from deltahalt.engine.call import prepare
from deltahalt.engine.decoder import run_layers
from deltahalt.host.families import family_of
from deltahalt.lab.evaluation.candidates import single
from deltahalt.lab.evaluation.samples import Sample, read_samples
from deltahalt.lab.evaluation.sweep import (
    PromptSweep,
    SweepRow,
    Way,
    encode,
    greedy_answer,
    judge,
    sweep_row,
)
from deltahalt.lab.rows.base import append_rows
from deltahalt.loading.models import LoadedModel, load
from deltahalt.policies.base import LayerView, place
from deltahalt.policies.text import format_policy
from deltahalt.policies.usual import attended

ASKING = 16  # tokens that ask beside the window
DRAFTED_AT = 2.5  # speedup of the prefill before the draft


@dataclass(frozen=True, kw_only=True)
class Given(Policy):
    """Keep the tokens whose scores, found before, are highest. found: [n]."""

    name: ClassVar[str] = "given"

    found: torch.Tensor

    @classmethod
    def like(cls, policy: Policy, found: torch.Tensor) -> "Given":
        """As many tokens, at the same place, as `policy` keeps."""
        own = {name: getattr(policy, name) for name in ("start", "pruning_ratio", "boundary", "chunk")}
        return cls(found=found, keep_first=policy.keep_first, keep_last=policy.keep_last, **own)

    def score(self, view: LayerView) -> torch.Tensor:
        return self.found


def scores(model: Any, policy: WindowAttention, tokens: torch.Tensor) -> torch.Tensor:
    """What `policy` scores the tokens [1, n] by, [n]."""
    decoder = model.get_decoder()
    (stage,) = place(policy, len(decoder.layers))
    stream, call = prepare(decoder, family_of(decoder.config), freeze=False, input_ids=tokens, use_cache=False)
    _, trace = run_layers(list(enumerate(decoder.layers))[: stage.last + 1], (stage,), stream, call)
    (found,) = trace.scores[0]
    assert found is not None
    return found


def exactly(policy: WindowAttention) -> WindowAttention:
    """The same layers' attention, where they run in full, in place of a look ahead."""
    assert isinstance(policy.start, int)
    return replace(policy, start=policy.start + policy.ahead, layers=policy.ahead + 1, ahead=0, boundary="block")


def asked_by(model: Any, policy: WindowAttention, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Scores of the prompt [1, n] where `tokens` [m] behind it ask beside the window, [n]."""
    window = policy.window + len(tokens)
    asking = replace(policy, window=window, keep_last=max(policy.keep_last, window))
    return scores(model, asking, torch.cat([prompt, tokens[None]], dim=1))[: prompt.shape[1]]


@torch.inference_mode()
def measure(loaded: LoadedModel, sample: Sample, policies: Sequence[str], drafter: str) -> Iterator[SweepRow]:
    """A row for each policy and who asks; none where nothing would halt. drafter: of the prefill before the draft."""
    model: Any = loaded.model
    layers, encoded = len(model.get_decoder().layers), encode(loaded, sample, Way())
    tokens = encoded.prompt.shape[1]
    plans = {text: place(parse_policy(text), layers) for text in {*policies, drafter}}
    if any(stage.policies[0].kept(tokens) == tokens for plan in plans.values() for stage in plan):
        return
    shared = PromptSweep(model, encoded.prompt, {plan[0].first for plan in plans.values()})
    whole = shared.finish(())
    own = greedy_answer(model, whole, encoded.rest, Way.max_answer_tokens)
    answer = own if encoded.answer is None else encoded.answer
    full = judge(model, whole, encoded.rest, answer)
    with halting(model, Dense()):  # goes on with a halted cache
        draft = greedy_answer(model, shared.finish(plans[drafter]), encoded.rest, ASKING)
    askers = {"a draft": draft, "its answer": own[:ASKING], "the answer": answer[:ASKING]}
    for text in policies:
        policy = parse_policy(text)
        assert isinstance(policy, WindowAttention)
        found = {f" asked by {who}": asked_by(model, policy, encoded.prompt, said) for who, said in askers.items()}
        found |= {"": scores(model, policy, encoded.prompt)}
        found |= {" scored exactly": scores(model, exactly(policy), encoded.prompt)}
        for how, given in found.items():
            prefilled = shared.finish(place(Given.like(policy, given), layers))
            verdict, agreed = (judge(model, prefilled, encoded.rest, said) for said in (answer, own))
            yield sweep_row(loaded, sample, f"{text}{how}", policy, tokens, verdict, full, agreed)


def main() -> None:
    """Measure every sample; rows are added as they come."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    for name in ("model", "samples", "rows"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--ahead", type=int, default=12)
    parser.add_argument("--targets", default="1.7,2.5")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default=None)
    given = parser.parse_args()
    loaded = load(given.model, dtype=given.dtype, device=given.device)
    layers = len(loaded.model.get_decoder().layers)
    speedups = [*map(float, given.targets.split(",")), DRAFTED_AT]
    reached = [single(given.layer, speedup, layers, partial(attended, ahead=given.ahead)) for speedup in speedups]
    policies = [format_policy(policy) for policy in reached if policy]
    if len(policies) < len(speedups):
        sys.exit(f"a decision at layer {given.layer} of {layers} cannot reach {max(speedups)}x: give an earlier one")
    for sample in read_samples(given.samples):
        append_rows(given.rows, measure(loaded, sample, policies[:-1], policies[-1]))


if __name__ == "__main__":
    main()
