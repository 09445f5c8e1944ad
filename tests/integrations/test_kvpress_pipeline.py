"""kvpress's pipeline on a halted context: several questions, its other presses, the documented examples."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, pipeline

from deltahalt import UnsupportedError
from deltahalt.engine.cache import HaltedCache
from helpers.oracle import Oracle
from helpers.tiny import VARIANTS, tiny

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

import kvpress

from deltahalt.integrations.kvpress import DeltaLayerPress, DeltaPress, HaltingPipeline
from helpers.presses import (
    CONTEXT,
    IDS,
    QUESTIONS,
    SMALL,
    TOLERANCE,
    Listener,
    encoded,
    held,
    kv_press,
    pipe,
    prefilled,
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [DeltaPress, DeltaLayerPress])
def test_questions_of_several_tokens_are_exact(kind: Any, variant: str, attention: str, tokenizer: Any) -> None:
    """Every logit of every question and answer, against the stock model that may not read halted tokens."""
    options = {"vocab_size": len(tokenizer)}
    model = tiny(variant, attention, **options)
    listener = Listener(model)
    answers = pipe(model, tokenizer)(CONTEXT, questions=QUESTIONS, press=kind(**SMALL), max_new_tokens=4)["answers"]
    assert len(answers) == len(QUESTIONS)

    context = encoded(tokenizer)
    with kind(**SMALL)(tiny(variant, attention, **options)) as halted, torch.no_grad():
        halted.host.module(context)
    assert halted.report.stages
    asked = listener.questions(4)
    assert [calls[0][0].shape[1] > 1 for calls in asked] == [True, True, False]
    for calls in asked:
        oracle = Oracle(tiny(variant, attention, **options), VARIANTS[variant].windows, halted.report)
        oracle(context)
        for tokens, logits in calls:
            assert (oracle(tokens)[:, -logits.shape[1] :] - logits).abs().max() < TOLERANCE


def test_a_question_leaves_the_context_as_it_was(tokenizer: Any) -> None:
    model = tiny(vocab_size=len(tokenizer))
    press, ask = DeltaPress(**SMALL), pipe(model, tokenizer)
    together = ask(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6)["answers"]
    assert together == [ask(CONTEXT, question=text, press=press, max_new_tokens=6)["answer"] for text in QUESTIONS]
    cache = DynamicCache()
    ask(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6, cache=cache)
    assert isinstance(cache, HaltedCache)
    assert max(held(cache)) == cache.seen == encoded(tokenizer).shape[1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_hosts_mask_does_not_fit_such_layers(attention: str) -> None:
    """Why there is a pipeline of our own: the stock model, on plain layers of unequal lengths, cannot be asked."""
    model = tiny(attention=attention)
    layers = prefilled(model, DeltaPress(**SMALL))[0].layers
    cache = DynamicCache()
    cache.layers = layers
    with pytest.raises(RuntimeError, match="must match"):
        model(IDS[:, :4], past_key_values=cache, position_ids=torch.arange(40, 44)[None])


def test_kvpress_own_pipeline_is_refused_when_it_asks(tokenizer: Any) -> None:
    ask = pipe(tiny(vocab_size=len(tokenizer)), tokenizer, kvpress.KVPressTextGenerationPipeline)
    with pytest.raises(UnsupportedError, match="this cache holds a halted prompt"):
        ask(CONTEXT, questions=QUESTIONS, press=DeltaPress(**SMALL))


@pytest.mark.parametrize("press", [None, "KnormPress", "SnapKVPress", "short"])
def test_whatever_does_not_halt_is_left_to_kvpress(press: str | None, tokenizer: Any) -> None:
    """Other presses, none, and a context too short to halt anything in."""
    chosen = press and (DeltaPress() if press == "short" else kv_press(press, compression_ratio=0.5))
    if press == "SnapKVPress":
        chosen.window_size = 4
    model = tiny(vocab_size=len(tokenizer))
    ours, theirs = (
        pipe(model, tokenizer, kind)(CONTEXT, questions=QUESTIONS, press=chosen, max_new_tokens=6)
        for kind in (HaltingPipeline, kvpress.KVPressTextGenerationPipeline)
    )
    assert ours == theirs


def test_presses_that_act_while_decoding_are_left_to_kvpress(tokenizer: Any) -> None:
    model = tiny(vocab_size=len(tokenizer))
    ours, theirs = (
        pipe(model, tokenizer, kind)(
            CONTEXT,
            question=QUESTIONS[0],
            press=kvpress.DecodingPress(kvpress.KnormPress(), compression_interval=2, target_size=16),
            max_new_tokens=6,
        )
        for kind in (HaltingPipeline, kvpress.KVPressTextGenerationPipeline)
    )
    assert ours == theirs


def test_transformers_makes_the_pipeline_by_kvpress_task(tiny_folder: Path) -> None:
    """As kvpress's evaluation makes it, with one argument more."""
    ask = pipeline("kv-press-text-generation", model=str(tiny_folder), device="cpu", pipeline_class=HaltingPipeline)
    assert type(ask) is HaltingPipeline
    assert set(ask(CONTEXT, questions=QUESTIONS, press=DeltaPress(**SMALL), max_new_tokens=2)) == {"answers"}


def test_the_documented_examples_run(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text(CONTEXT * 3)
    text = (Path(__file__).parents[2] / "docs" / "kvpress.md").read_text(encoding="utf-8")
    asking, calling, _, composing = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    asking = asking.replace("Qwen/Qwen2.5-7B-Instruct", str(tiny_folder)).replace(
        "report.txt", f"{tmp_path}/report.txt"
    )
    asking = asking.replace('"auto"', '"cpu"')
    names: dict[str, Any] = {"DynamicCache": DynamicCache, "SnapKVPress": kvpress.SnapKVPress}
    exec(compile(asking, "docs/kvpress.md", "exec"), names)
    assert len(names["answers"]) == 2
    names |= {"model": names["ask"].model, "input_ids": torch.ones(1, 200).long(), "question_ids": IDS}
    exec(compile(calling, "docs/kvpress.md", "exec"), names)
    report = names["halted"].report
    assert len(report.kept[0]) < report.prompts[0]
    exec(compile(composing, "docs/kvpress.md", "exec"), names)
