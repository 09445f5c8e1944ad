"""Methods of all stages by one entry: `applying`, and the sweep, the bench and answers that go through it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, InputError, PolicyError, UnsupportedError, halting
from deltahalt.answering.ask import ask
from deltahalt.answering.documents import context_ends, format_turn
from deltahalt.flops import ModelShape, dense_loads, policy_loads, savings, true_flops
from deltahalt.host.compat import CACHE
from deltahalt.lab.bench.measure import measure
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.evaluation.grid import variants
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import Encoded, SweepSettings, encode, reference_speedup, sweep
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying, speedup_bound
from deltahalt.methods.d3 import D3
from deltahalt.methods.gemfilter import GemFilter
from deltahalt.methods.halting import Halting
from deltahalt.methods.llmlingua2 import LLMLingua2
from deltahalt.methods.registry import METHODS, format_method, parse_method
from deltahalt.methods.snapkv import SnapKV
from helpers.encoders import save_xlm_roberta
from helpers.loads import with_exit
from helpers.methods import named
from helpers.tiny import prompts, tiny

TEXT = "The tide is in. A plum costs 42 marks. " * 6
SAMPLE = Sample("qa", TEXT, "at noon", question="When is the tide in?")
D3_TEXT, GEMFILTER_TEXT = "d3:alpha=0.7,core=2", "gemfilter:start=3,pruning_ratio=0.5"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_xlm_roberta(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def texts(encoder: str) -> list[str]:
    """A method of each stage, as text; SnapKV is tested with kvpress."""
    return [D3_TEXT, GEMFILTER_TEXT, f"llmlingua2:encoder={encoder},pruning_ratio=0.5", "dash:keep_first=4,keep_last=8"]


def test_methods_are_listed_with_their_stages() -> None:
    stages = {name: method.stage for name, method in METHODS.items()}
    assert {stages["llmlingua2"], stages["gemfilter"]} == {"prompt"}
    assert (stages["dash"], stages["snapkv"], stages["d3"]) == ("LLM", "KV", "decode")
    assert [method.name for method in METHODS.values()] == list(METHODS)
    assert all(method.summary and method.source for method in METHODS.values())


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("d3:alpha=0.9,core=4", D3(alpha=0.9, core=4)),
        ("d3:core=0.25", D3(core=0.25)),
        (
            "gemfilter:start=13,count=1024,keep_first=0,keep_last=1",
            GemFilter(start=13, count=1024, keep_first=0, keep_last=1),
        ),
        ("llmlingua2:encoder=a/b,pruning_ratio=0.5", LLMLingua2(encoder="a/b", pruning_ratio=0.5)),
        ("snapkv:pruning_ratio=0.5,window=32", SnapKV(pruning_ratio=0.5, window=32)),
        ("dash:start=3", Halting(policy=Dash(start=3))),
    ],
)
def test_a_text_names_a_method_of_any_stage(text: str, method: Any) -> None:
    assert parse_method(text) == method
    assert parse_method(format_method(method)) == method


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("snap", r"no policy 'snap' here: choose one of both-ends, dart,.*d3.*did you mean 'snapkv'\?"),
        ("d3:start=3", "d3 has no option 'start'; it has alpha, core"),
        ("d3:core=half", "d3 option core is 'half'"),
        ("dash+d3", "no policy 'd3'"),
        ("snapkv:kernel=2", "kernel is 2"),
        ("snapkv:window=0", "window is 0"),
        ("snapkv:pruning_ratio=1", "pruning_ratio is 1"),
    ],
)
def test_what_names_no_method_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        parse_method(text)


def test_variants_set_only_what_a_method_has() -> None:
    asked = ["dash", "d3", "gemfilter:start=3", "snapkv:window=8", "dense"]
    assert [*variants(asked, ["0.2"], ["0.5", "0.9"])] == [
        "dash:start=0.2,pruning_ratio=0.5",
        "dash:start=0.2,pruning_ratio=0.9",
        "d3",
        "gemfilter:pruning_ratio=0.5,start=3",
        "gemfilter:pruning_ratio=0.9,start=3",
        "snapkv:pruning_ratio=0.5,window=8",
        "snapkv:pruning_ratio=0.9,window=8",
        "dense",
    ]


@pytest.mark.parametrize("options", [{"min_prompt_tokens": 9}])
def test_options_of_halting_are_refused_where_nothing_halts(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="d3 does not halt tokens"), applying(tiny(), D3(), **options):
        pass


def test_a_policy_is_halting() -> None:
    ids, _ = prompts(120)
    model = tiny()
    with halting(model, Dash()), torch.no_grad():
        wanted = model(ids, logits_to_keep=1).logits
    with applying(model, Dash()) as applied, torch.no_grad():
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert applied.shorten(asked) is asked
        assert torch.equal(model(ids, logits_to_keep=1).logits, wanted)
        assert applied.flops == applied.halted.report.flops
        assert not applied.by_token


@pytest.mark.skipif(find_spec("kvpress") is not None, reason="kvpress is installed")
def test_snapkv_says_how_to_get_kvpress() -> None:
    with pytest.raises(UnsupportedError, match=r"kvpress is not installed: run `make kvpress-env`"):
        SnapKV().attached(tiny())


@pytest.mark.parametrize(
    ("context", "tokens", "ends"),
    [
        ("cd ef", 9, (2, 2)),
        ("cd ef", 10, (3, 2)),
        ("cd ef", 6, (0, 2)),
        ("ab", 9, (0, 7)),
        ("gh", 9, None),
        (" ", 9, None),
    ],
)
def test_a_context_is_found_in_its_prompt(
    context: str, tokens: int, ends: tuple[int, int] | None, loaded_tiny: LoadedModel
) -> None:
    """The prompt is nine tokens of a byte each; one more with <s> in front, fewer where its beginning was cut."""
    assert context_ends(loaded_tiny.tokenizer, "abcd ef!?", context, tokens) == ends


def test_what_a_method_costs_is_known_from_the_length() -> None:
    shape = ModelShape(6, 64, 96, 4, 2, 16)
    full = true_flops(shape, dense_loads(6, 1000), 1000)
    assert speedup_bound(shape, D3(), 1000) == 1
    assert speedup_bound(shape, SnapKV(), 1000) == 1
    kept = 96 + 904 - round(0.667 * 904)
    assert speedup_bound(shape, LLMLingua2(), 1000) == full / true_flops(shape, dense_loads(6, kept), kept)
    assert speedup_bound(shape, Dash(), 1000) == savings(shape, Dash(), 1000).true_speedup
    assert reference_speedup(GemFilter(start=3), 6) == reference_speedup(GemFilter(start=14), 28)


def test_an_answer_s_time_begins_before_the_prompt_is_shortened(
    texts: list[str], loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr("deltahalt.answering.generation.clock", lambda: float(events.append("clock") or len(events)))
    own = LLMLingua2.score
    monkeypatch.setattr(LLMLingua2, "score", lambda *args: (events.append("score"), own(*args))[1])
    ids = loaded_tiny.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answer = ask(loaded_tiny, asked, parse_method(texts[2]), max_new_tokens=4)
    assert events == ["clock", "score", "clock", "clock"]
    kept = 96 + (ids.shape[1] - 96) - round(0.5 * (ids.shape[1] - 96))
    assert answer.lengths == (kept,) * 6
    assert answer.prompt_tokens == ids.shape[1]
    shape = ModelShape.of(loaded_tiny.model.config)
    assert answer.flops == true_flops(shape, dense_loads(6, kept), kept)


def steps(encoded: Encoded) -> Sequence[torch.Tensor]:
    """The answer's tokens but the last, [1, 1] each."""
    assert encoded.answer is not None
    return encoded.answer[None, :-1].split(1, dim=1)


def test_a_sweep_judges_each_method_as_generate_would_go(
    texts: list[str], loaded_tiny: LoadedModel, tmp_path: Path
) -> None:
    """The first answer token follows the prefill, each later one the method's own step."""
    rows = list(sweep(loaded_tiny, [SAMPLE], named(texts), tmp_path / "rows.jsonl"))
    encoded = encode(loaded_tiny, SAMPLE, SweepSettings())
    text = format_turn(loaded_tiny.tokenizer, SAMPLE.text)
    ends = context_ends(loaded_tiny.tokenizer, text, SAMPLE.prompt, encoded.prompt.shape[1])
    for row in rows:
        method = parse_method(row.policy)
        with applying(loaded_tiny.model, method, loaded_tiny.tokenizer) as applied, torch.no_grad():
            prompt = {"input_ids": encoded.prompt, "attention_mask": torch.ones_like(encoded.prompt)}
            cache = DynamicCache()
            short = applied.shorten(prompt, [ends])
            logits = [loaded_tiny.model(**short, **{CACHE: cache}, logits_to_keep=1).logits[0]]
            logits += [loaded_tiny.model(step, **{CACHE: cache}).logits[0] for step in steps(encoded)]
        nll = torch.nn.functional.cross_entropy(torch.cat(logits), encoded.answer)
        assert row.nll == pytest.approx(float(nll), abs=1e-5)
        assert row.nll != pytest.approx(row.full_nll, abs=1e-4)
        assert row.speedup == speedup_bound(ModelShape.of(loaded_tiny.model.config), method, row.prompt)


def test_query_free_the_question_is_a_prompt_and_the_answer_is_generated(
    loaded_tiny: LoadedModel, tmp_path: Path
) -> None:
    """Under D3 the document and the question run in full, and the answer's tokens one by one with less and less."""
    settings = SweepSettings(query_free=True)
    (row,) = list(sweep(loaded_tiny, [SAMPLE], named([D3_TEXT]), tmp_path / "rows.jsonl", settings))
    encoded = encode(loaded_tiny, SAMPLE, settings)
    cache = DynamicCache()
    with applying(loaded_tiny.model, parse_method(D3_TEXT)), torch.no_grad():
        for tokens in (encoded.prompt, encoded.rest):
            logits = [loaded_tiny.model(tokens, **{CACHE: cache}).logits[0, -1:]]
        logits += [loaded_tiny.model(step, **{CACHE: cache}).logits[0] for step in steps(encoded)]
    nll = torch.nn.functional.cross_entropy(torch.cat(logits), encoded.answer)
    assert row.nll == pytest.approx(float(nll), abs=1e-5)


def test_a_sample_without_a_question_apart_keeps_both_ends(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    sample = Sample("qa", TEXT, "at noon")
    (row,) = list(sweep(loaded_tiny, [sample], named(["gemfilter:start=3,count=1"]), tmp_path / "rows.jsonl"))
    encoded = encode(loaded_tiny, sample, SweepSettings())
    with applying(loaded_tiny.model, GemFilter(start=3, count=1)) as applied:
        prompt = {"input_ids": encoded.prompt, "attention_mask": torch.ones_like(encoded.prompt)}
        short = applied.shorten(prompt)["input_ids"]
    assert short.shape[1] == 97
    with torch.no_grad():
        answer = encoded.answer
        assert answer is not None
        logits = loaded_tiny.model(torch.cat([short, answer[None, :-1]], dim=1)).logits[0, -len(answer) :]
    assert row.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, answer)), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_bench_has_a_row_for_each_method(batch: int, texts: list[str], loaded_tiny: LoadedModel) -> None:
    model = loaded_tiny.model
    methods = {text: parse_method(text) for text in texts}
    given = random_prompts(model, 200, batch, seed=0)
    (rows,) = measure(model, "tiny", methods, given, tokenizer=loaded_tiny.tokenizer, new_tokens=4, repeats=1)
    assert [row.policy for row in rows] == texts
    shape = ModelShape.of(model.config)
    for row in rows[:-1]:
        assert row.gain.flops == pytest.approx(speedup_bound(shape, methods[row.policy], 200))
    loads = with_exit(policy_loads(Dash(keep_first=4, keep_last=8), shape.layers, 200))
    full = true_flops(shape, dense_loads(shape.layers, 200), 200)
    assert rows[-1].gain.flops == pytest.approx(full / true_flops(shape, loads, 200))


def test_the_bench_refuses_words_where_there_are_none(texts: list[str], loaded_tiny: LoadedModel) -> None:
    given = random_prompts(loaded_tiny.model, 200, 1, seed=0)
    with pytest.raises(InputError, match="give a --model"):
        next(measure(loaded_tiny.model, "tiny", {texts[2]: parse_method(texts[2])}, given, repeats=1))
