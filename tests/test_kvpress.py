"""The presses inside kvpress: its pipeline, several questions on one context, its evaluation, its other presses."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, StaticCache, pipeline

from deltahalt import Dash, DashLayer, InputError, PolicyError, UnsupportedError, halting
from deltahalt.applying import applying
from deltahalt.ask import ask
from deltahalt.bench.measure import measure
from deltahalt.bench.prompts import random_prompts
from deltahalt.cache import HaltedCache
from deltahalt.evaluation.samples import Sample
from deltahalt.evaluation.sweep import sweep
from deltahalt.kv.snapkv import SnapKV
from deltahalt.methods import parse_method
from deltahalt.models import LoadedModel
from oracle import Feed, Oracle
from tiny import VARIANTS, VOCAB, attributes, prompts, tiny
from tiny_vision import SEVERAL, tiny_vision, vision_prompts

kvpress = pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

from deltahalt.integrations.kvpress import (  # noqa: E402
    FOLLOWING,
    DeltaLayerPress,
    DeltaPress,
    HaltingPipeline,
)

TOLERANCE = 1e-5
SMALL: dict[str, Any] = {"compression_ratio": 0.6, "start_ratio": 0.2, "keep_first_n": 2, "keep_last_n": 3}
CONTEXT = "A harbour master signed the report in spring, when the ice was gone."
QUESTIONS = ["Who signed?", "In which season was it, and why then?", ""]
IDS = prompts(40)[0]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


def kv_press(name: str, **settings: Any) -> Any:
    return getattr(kvpress, name)(**settings)


def pipe(model: Any, tokenizer: Any, kind: Any = HaltingPipeline) -> Any:
    return kind(model=model, tokenizer=tokenizer, device="cpu")


def encoded(tokenizer: Any) -> torch.Tensor:
    """The context as kvpress's pipeline reads it, [1, n]."""
    return tokenizer.encode(tokenizer.bos_token + CONTEXT, return_tensors="pt", add_special_tokens=False)


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


def prefilled(model: Any, press: Any, cache: DynamicCache | None = None, **options: Any) -> Any:
    """The cache of a prefill as kvpress's users write it, and the halted model."""
    cache = DynamicCache() if cache is None else cache
    with press(model) as halted, torch.no_grad():
        model(IDS, past_key_values=cache, **options)
    return cache, halted


# The presses


@pytest.mark.parametrize(("kind", "policy"), [(DeltaPress, Dash), (DeltaLayerPress, DashLayer)])
def test_a_press_halts_the_tokens_of_its_policy(kind: Any, policy: Any) -> None:
    model = tiny()
    cache, halted = prefilled(model, kind(**SMALL))
    with halting(model, policy(start=0.2, pruning_ratio=0.6, keep_first=2, keep_last=3)) as expected:
        feed = Feed(model)
        feed(IDS, logits_to_keep=1)
    assert isinstance(kind(), kvpress.BasePress)
    assert halted.report.kept[0].tolist() == expected.report.kept[0].tolist()
    for ours, theirs in zip(cache.layers, feed.cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_the_settings_are_the_references() -> None:
    policy = DeltaPress().policy
    assert (policy.start, policy.pruning_ratio, policy.keep_first, policy.keep_last) == (0.4, 0.667, 64, 32)


def test_settings_may_change_after_the_press_is_made() -> None:
    """kvpress's evaluation takes a press from its registry and sets the ratio."""
    registry = {"delta_press": DeltaPress(**SMALL | {"compression_ratio": 0.1})}
    press = registry["delta_press"]
    press.compression_ratio = 0.6
    assert held(prefilled(tiny(), press)[0]) == held(prefilled(tiny(), DeltaPress(**SMALL))[0])


@pytest.mark.parametrize(
    "setting",
    [{"compression_ratio": 1.01}, {"start_ratio": 1}, {"start_ratio": "0.4"}, {"keep_first_n": -1}, {"keep_last_n": 0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        DeltaPress(**setting)


def test_a_start_ratio_is_never_an_index() -> None:
    assert DeltaPress(start_ratio=0).policy.start == 0.0
    assert isinstance(DeltaPress(start_ratio=0).policy.start, float)


@pytest.mark.parametrize("then", [None, "SnapKVPress"])
def test_after_the_block_the_model_is_as_before(then: str | None) -> None:
    model = tiny()
    model(IDS)  # kvpress's patch of attention functions leaves a mark on modules that have run
    before = attributes(model)
    press = DeltaPress(**SMALL, then=then and kv_press(then, compression_ratio=0.5, window_size=4))
    prefilled(model, press)
    assert attributes(model) == before

    def fail() -> None:
        with press(model):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert attributes(model) == before


def test_generate_in_the_block_is_that_of_halting() -> None:
    model, (ids, mask) = tiny(), prompts(40, 29)
    with halting(model, DeltaPress(**SMALL).policy):
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    with DeltaPress(**SMALL)(model) as halted:
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5), expected)
    assert halted.report.stages


# Logits of a call that does not say how many it wants


def test_a_press_on_a_vision_language_model_is_halting_on_it() -> None:
    model = tiny_vision()
    call = vision_prompts(model, "qwen2_vl", SEVERAL).call()
    press, generated = DeltaPress(**SMALL), []
    for context in (press(model), halting(model, press.policy)):
        with context as halted, torch.no_grad():
            generated.append(model.generate(**call, max_new_tokens=4, do_sample=False))
        assert halted.report.lengths[0][-1] < call["input_ids"].shape[1]
    assert torch.equal(*generated)


def test_a_prefill_gives_the_last_logits_and_a_continuation_all() -> None:
    model, cache = tiny(), DynamicCache()
    with DeltaPress(**SMALL)(model), torch.no_grad():
        assert model(IDS, past_key_values=cache).logits.shape == (1, 1, VOCAB)
        assert model(IDS[:, :4], past_key_values=cache).logits.shape == (1, 4, VOCAB)
        assert model(IDS[:, :4], None, None, cache).logits.shape == (1, 4, VOCAB)


def test_logits_that_are_asked_for_and_were_halted_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="halted tokens have no logits"):
        prefilled(tiny(), DeltaPress(**SMALL), logits_to_keep=0)


# Questions on a halted context


class Listener:
    """Notes what goes into a model's calls, [1, n] tokens each, and the logits that come out."""

    def __init__(self, model: Any) -> None:
        self.tokens: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.hook = model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.tokens.append(kwargs["input_ids"])
        self.logits.append(output.logits)

    def questions(self, steps: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """By question, its calls: the question, then steps - 1 tokens of the answer."""
        calls = list(zip(self.tokens, self.logits, strict=True))
        return [calls[first : first + steps] for first in range(0, len(calls), steps)]


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
        halted.decoder(context)
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
    text = (Path(__file__).parents[1] / "docs" / "kvpress.md").read_text(encoding="utf-8")
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
    assert names["halted"].report.lengths[0][-1] < names["halted"].report.lengths[0][0]
    exec(compile(composing, "docs/kvpress.md", "exec"), names)


# Halt, then compress what is left


def follower(name: str) -> Any:
    return kv_press(name, compression_ratio=0.5, **{"window_size": 4} if name == "SnapKVPress" else {})


class HeadOracle(Oracle):
    """An oracle whose heads, once the prompt is read, see only `heads` of it: by layer, [heads, T]."""

    heads: tuple[torch.Tensor, ...]

    def _mask(self, index: int, layer: Any, new: int, undo: Any) -> None:
        columns = self.active[0].shape[1]
        if new == columns:
            super()._mask(index, layer, new, undo)
            return
        readable = self.heads[index]
        visible = torch.ones(len(readable), new, columns, dtype=torch.bool).tril(columns - new)
        visible[:, :, : readable.shape[1]] = readable[:, None]
        mask = visible[None]
        if self.model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def replace(_: Any, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"attention_mask": mask}

        undo.callback(layer.register_forward_pre_hook(replace, with_kwargs=True).remove)


def chosen_by_heads(model: Any, press: Any, follower: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    """What each head keeps of a halted prompt, by layer [heads, T], from the press's scores of the halted layers."""
    seen: dict[int, Any] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen[module.layer_idx] = (kwargs, output[1])

    hooks = [layer.self_attn.register_forward_hook(note, with_kwargs=True) for layer in model.model.layers]
    cache, halted = prefilled(model, press)
    for hook in hooks:
        hook.remove()
    ((decided, (kept,)),) = halted.report.stages
    heads = []
    for index, layer in enumerate(model.model.layers):
        columns = kept if index > decided else torch.arange(IDS.shape[1])
        kwargs, weights = seen[index]
        stored = cache.layers[index]
        scores = follower.score(layer.self_attn, kwargs["hidden_states"], stored.keys, stored.values, weights, kwargs)
        best = columns[scores[0].topk(int(len(columns) * (1 - follower.compression_ratio))).indices]
        readable = torch.zeros(len(best), IDS.shape[1], dtype=torch.bool).scatter_(1, best, True)
        heads.append(readable.repeat_interleave(layer.self_attn.num_key_value_groups, dim=0))
    return tuple(heads), halted.report


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("name", [press.__name__ for press in FOLLOWING])
def test_a_kv_press_compresses_what_halting_left(name: str, variant: str, attention: str) -> None:
    """Prefill, a question, single tokens: each head reads what the press chose for it of the halted layer."""
    model = tiny(variant, attention)
    calls = [IDS, IDS[:, 3:9], IDS[:, 7:8], IDS[:, 5:8]]
    with DeltaPress(**SMALL, then=follower(name))(model) as halted:
        feed = Feed(model)
        ours = [feed(tokens, logits_to_keep=0 if number else 1) for number, tokens in enumerate(calls)]
    assert held(feed.cache) == [30, 30, 19, 19, 19, 19]  # half of 40 and of 19, and 10 new ones

    heads, report = chosen_by_heads(tiny(variant, attention), DeltaPress(**SMALL), follower(name))
    assert [part.tolist() for part in halted.report.kept] == [part.tolist() for part in report.kept]
    oracle = HeadOracle(model, VARIANTS[variant].windows, report)
    oracle.heads = heads
    for tokens, logits in zip(calls, ours, strict=True):
        assert (oracle(tokens)[:, -logits.shape[1] :] - logits).abs().max() < TOLERANCE


def test_rows_of_a_batch_are_compressed_as_if_alone() -> None:
    ids = prompts(40, 40)[0]
    logits = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        model = tiny()
        with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
            feed = Feed(model)
            feed(ids[rows], logits_to_keep=1)
            logits.append(feed(ids[rows, :5]))
    assert (logits[0] - torch.cat(logits[1:])).abs().max() < TOLERANCE


def test_questions_on_what_a_kv_press_has_left(tokenizer: Any) -> None:
    press = DeltaPress(**SMALL, then=follower("SnapKVPress"))
    model = tiny(vocab_size=len(tokenizer))
    ask = pipe(model, tokenizer)
    listener = Listener(model)
    together = ask(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6)["answers"]
    assert together == [ask(CONTEXT, question=text, press=press, max_new_tokens=6)["answer"] for text in QUESTIONS]
    context = encoded(tokenizer)
    for calls in listener.questions(6)[:3]:
        with press(model), torch.no_grad():
            feed = Feed(model)
            feed(context)
            for tokens, logits in calls:
                assert (feed(tokens)[:, -1] - logits[:, -1]).abs().max() < TOLERANCE


def test_a_prompt_too_short_to_halt_is_compressed_all_the_same(tokenizer: Any) -> None:
    model = tiny(vocab_size=len(tokenizer))
    ours, theirs = (
        pipe(model, tokenizer)(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6)
        for press in (DeltaPress(then=follower("SnapKVPress")), follower("SnapKVPress"))
    )
    assert ours == theirs
    with follower("SnapKVPress")(model):
        expected = model.generate(IDS, max_new_tokens=5)
    with DeltaPress(then=follower("SnapKVPress"))(model):
        assert torch.equal(model.generate(IDS, max_new_tokens=5), expected)


def test_a_compressed_prompt_is_cropped_down_to_and_not_into() -> None:
    model = tiny()
    with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
        feed = Feed(model)
        feed(IDS, logits_to_keep=1)
        before = held(feed.cache)
        feed(IDS[:, :4])
        feed.cache.crop(-4)
    assert held(feed.cache) == before
    with pytest.raises(InputError, match="only the last 0"):
        feed.cache.crop(-1)


def test_a_cache_filled_outside_the_block_is_gone_on_with() -> None:
    model = tiny()
    feed, expected = Feed(model), Feed(model)
    for one in (feed, expected):
        one(IDS)
    with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
        logits = feed(IDS[:, :4])
    assert type(feed.cache) is DynamicCache
    assert (logits - expected(IDS[:, :4])).abs().max() < TOLERANCE


# What is refused


@dataclass(frozen=True)
class Refused:
    """A press and how it is called. advice: what the message has to say."""

    advice: str
    press: Any
    variant: str = "llama"
    options: tuple[tuple[str, Any], ...] = ()


def composed(*presses: Any) -> Any:
    return kvpress.ComposedPress(list(presses))


REFUSED = {
    "composed": Refused("then=", composed(DeltaPress(**SMALL), follower("SnapKVPress"))),
    "composed the other way": Refused("then=", composed(follower("SnapKVPress"), DeltaPress(**SMALL))),
    "while decoding": Refused("then=", kvpress.PrefillDecodingPress(prefilling_press=DeltaPress(**SMALL))),
    "positions by index": Refused(
        "KeyRerotationPress cannot follow",
        DeltaPress(**SMALL, then=kvpress.KeyRerotationPress(kvpress.KnormPress(0.5))),
    ),
    "unequal layers": Refused("PyramidKVPress cannot follow", DeltaPress(**SMALL, then=kvpress.PyramidKVPress(0.5))),
    "itself": Refused("DeltaPress cannot follow", DeltaPress(**SMALL, then=DeltaPress(**SMALL))),
    "windows": Refused("sliding-window", DeltaPress(**SMALL, then=follower("KnormPress")), "gemma3"),
    "no cache": Refused(
        "without a cache", DeltaPress(**SMALL, then=follower("KnormPress")), options=(("use_cache", False),)
    ),
    "padding": Refused(
        "one by one",
        DeltaPress(**SMALL, then=follower("KnormPress")),
        options=(("attention_mask", (torch.arange(40) > 3).long()[None]),),
    ),
    "static cache": Refused(
        "pass a DynamicCache", DeltaPress(**SMALL), options=(("past_key_values", StaticCache(tiny().config, 64)),)
    ),
    "a loss": Refused("labels are not supported", DeltaPress(**SMALL), options=(("labels", IDS),)),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case: Refused) -> None:
    model = tiny(case.variant)
    model(IDS)
    before = attributes(model)
    with pytest.raises(UnsupportedError, match=re.escape(case.advice)), case.press(model):
        model(**{"input_ids": IDS, **dict(case.options)})
    if not isinstance(case.press, (kvpress.ComposedPress, kvpress.PrefillDecodingPress)):  # these leave a module behind
        assert attributes(model) == before


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("then", [None, "KnormPress"])
def test_a_kv_press_beside_a_halting_one_is_refused(then: str | None, outside: bool) -> None:
    model = tiny()
    halt, other = DeltaPress(**SMALL, then=then and follower(then)), kvpress.KnormPress(0.5)
    first, second = (other, halt) if outside else (halt, other)
    with first(model), second(model), pytest.raises(UnsupportedError, match="KnormPress is at work"):
        model(IDS, past_key_values=DynamicCache())


# SnapKV by our commands

SNAPKV = SnapKV(pruning_ratio=0.5, window=8)


def test_snapkv_is_kvpress_s_own() -> None:
    """The same entries stay in every layer, and the next token reads them as after kvpress's own prefill."""
    ours, theirs, token = DynamicCache(), DynamicCache(), torch.tensor([[7]])
    model, stock = tiny(), tiny()
    with torch.no_grad():
        with applying(model, SNAPKV) as applied:
            first = model(
                **applied.shorten({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
                past_key_values=ours,
                logits_to_keep=1,
            ).logits
            assert applied.halted.report.lengths == ((40,) * 6,)
            second = model(token, past_key_values=ours).logits
        with kvpress.SnapKVPress(0.5, window_size=8, kernel_size=5)(stock):
            assert (first - stock(IDS, past_key_values=theirs, logits_to_keep=1).logits).abs().max() < TOLERANCE
        wanted = stock(token, past_key_values=theirs, position_ids=torch.tensor([[40]])).logits
    assert (second - wanted).abs().max() < TOLERANCE
    assert held(ours) == held(theirs) == [21] * 6
    for mine, own in zip(ours.layers, theirs.layers, strict=True):
        assert torch.allclose(mine.keys, own.keys, atol=TOLERANCE)


def test_snapkv_in_an_answer_a_sweep_and_the_bench(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    ids = loaded_tiny.tokenizer(CONTEXT * 3, return_tensors="pt")["input_ids"]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    full, compressed = ask(loaded_tiny, asked, None), ask(loaded_tiny, asked, SNAPKV)
    assert compressed.lengths == full.lengths
    assert compressed.cache_bytes == full.cache_bytes * int(ids.shape[1] * 0.5) // ids.shape[1]
    text = "snapkv:pruning_ratio=0.5,window=8"
    sample = Sample("qa", CONTEXT * 3, "In spring", question="When?")
    (row,) = sweep(loaded_tiny, [sample], [text], tmp_path / "rows.jsonl")
    assert row.nll != row.full_nll
    assert row.speedup == 1
    given = random_prompts(loaded_tiny.model, 60, 2, seed=0)
    (benched,) = measure(loaded_tiny.model, "tiny", {text: parse_method(text)}, given, new_tokens=3, repeats=1)
    assert benched.gain.flops == 1
    assert benched.gain.kv_bytes == 2


def test_snapkv_refuses_what_it_cannot_do() -> None:
    with applying(tiny(), SNAPKV) as applied, pytest.raises(InputError, match="no longer than snapkv's window"):
        applied.shorten({"input_ids": IDS[:, :8], "attention_mask": torch.ones(1, 8)})
    model, (ids, mask) = tiny(), prompts(40, 20)
    with applying(model, SNAPKV), pytest.raises(UnsupportedError, match="one by one"):
        model(ids, attention_mask=mask)
    model = tiny("gemma3")
    with pytest.raises(UnsupportedError, match="sliding-window"), applying(model, SNAPKV):
        pass


# kvpress's own tests

PLUGIN = """
from functools import partial

from tests import default_presses, test_pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from deltahalt.integrations.kvpress import DeltaLayerPress, DeltaPress, HaltingPipeline

ends = {"keep_first_n": 4, "keep_last_n": 4}
default_presses.default_presses[:] = [
    {"cls": kind, "kwargs": [ends | {"compression_ratio": 0.2}, ends | {"compression_ratio": 0.8}]}
    for kind in (DeltaPress, DeltaLayerPress)
]
test_pipeline.ExpectedAttentionPress = partial(DeltaPress, **ends)
test_pipeline.KVPressTextGenerationPipeline = HaltingPipeline
PIPELINE_REGISTRY.supported_tasks["kv-press-text-generation"]["impl"] = HaltingPipeline
"""
OWN_TESTS = (
    "tests/presses/test_presses.py::test_presses_run",
    "tests/test_decoding_compression.py::test_all_presses_work_with_decoding_press",
    "tests/test_pipeline.py::test_pipeline_with_cache",
    "tests/test_pipeline.py::test_pipeline_context_cache_is_invariant",
)


@pytest.mark.skipif("KVPRESS_SOURCE" not in os.environ, reason="KVPRESS_SOURCE names no checkout of kvpress's tests")
def test_kvpress_own_tests_pass_with_our_presses(tokenizer: Any, tmp_path: Path) -> None:
    """Those about any press and its pipeline, but for `ComposedPress`; their model on the hub is a tiny one here."""
    shutil.copytree(Path(os.environ["KVPRESS_SOURCE"]) / "tests", tmp_path / "tests")
    (tmp_path / "our_presses.py").write_text(PLUGIN)
    for name in ("MaxJeblick", "maxjeblick"):
        stored = tmp_path / "hub" / f"models--{name}--llama2-0b-unit-test"
        (stored / "refs").mkdir(parents=True)
        (stored / "refs" / "main").write_text("tiny")
        tiny(vocab_size=3072).save_pretrained(stored / "snapshots" / "tiny")
        tokenizer.save_pretrained(stored / "snapshots" / "tiny")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "our_presses", "-k", "not ComposedPress", *OWN_TESTS],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
