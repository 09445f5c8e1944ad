"""lm-eval's model class with halting: dense is lm-eval's own model exactly, and what follows a prompt never halts."""

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import InputError, ModelError, PolicyError, UnsupportedError, halting, parse_policy
from deltahalt.host.compat import CACHE
from helpers.tiny import attributes

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from deltahalt.integrations.lm_eval import DeltahaltLM
from deltahalt.methods.registry import parse_method

POLICIES = [
    "dash:start=2,keep_first=4,keep_last=8",
    "window-attention:start=3,window=8,chunk=4,keep_first=2,keep_last=8",
    "key-norm:start=1,pruning_ratio=0.4,keep_first=2,keep_last=4+random:start=3,keep_first=2,keep_last=4",
]
LINES = ["The tide is in. " * count for count in (3, 14, 7, 11, 5, 9)]
ENDINGS = [" at noon", " never", " on the other day", " in", " out of the bay", " it"]
PAIRS = list(zip(LINES, ENDINGS, strict=True))


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, own, 0, metadata=("a task", number, 1)) for number, own in enumerate(arguments)]


SCORED = requests("loglikelihood", *PAIRS, ("", "Nothing before it"), (LINES[1], " always"))
ROLLED = requests("loglikelihood_rolling", *((line,) for line in LINES))
GENERATED = requests(
    "generate_until", *((line, {"until": ["ae"], "max_gen_toks": 6, "do_sample": False}) for line in LINES)
)


@pytest.fixture
def make(tiny_folder: Path) -> Any:
    """A DeltahaltLM of the tiny model, in float32 on the CPU."""
    return lambda policy="dense", **options: DeltahaltLM(
        str(tiny_folder), policy, **{"device": "cpu", "dtype": "float32"} | options
    )


def step_by_step(lm: DeltahaltLM, policy: str, context: str, ending: str) -> tuple[float, bool]:
    """The answer to one request: the halted prompt alone, then its continuation one token after the other."""
    tokens, later = lm._encode_pair(context, ending)
    cache, total, greedy = DynamicCache(config=lm.model.config), 0.0, True
    with halting(lm.model, parse_policy(policy)) as halted, torch.inference_mode():
        logits = lm.model(torch.tensor([tokens]), **{CACHE: cache}, logits_to_keep=1).logits[0, -1]
        assert len(halted.report.kept[0]) < len(tokens)
        for token in later:
            total += float(logits.log_softmax(-1)[token])
            greedy &= int(logits.argmax()) == token
            logits = lm.model(torch.tensor([[token]]), **{CACHE: cache}).logits[0, -1]
    return total, greedy


@pytest.mark.parametrize("batch", [1, 4])
def test_dense_is_lm_evals_own_model_exactly(batch: int, tiny_folder: Path, make: Any) -> None:
    own, dense = HFLM(str(tiny_folder), device="cpu", dtype="float32", batch_size=batch), make(batch_size=batch)
    assert dense.loglikelihood(SCORED) == own.loglikelihood(SCORED)
    assert dense.loglikelihood_rolling(ROLLED) == own.loglikelihood_rolling(ROLLED)
    answers = dense.generate_until(GENERATED)
    assert answers == own.generate_until(GENERATED)
    assert len(set(answers)) > 1


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_continuation_follows_the_halted_prompt_and_never_halts(policy: str, batch: int, make: Any) -> None:
    lm = make(policy, batch_size=batch)
    wanted = [step_by_step(lm, policy, *pair) for pair in PAIRS]
    for (score, greedy), (total, right) in zip(
        lm.loglikelihood(requests("loglikelihood", *PAIRS)), wanted, strict=True
    ):
        assert score == pytest.approx(total, abs=1e-4)
        assert greedy == right
    dense = make().loglikelihood(requests("loglikelihood", *PAIRS))
    assert all(abs(score - total) > 1e-3 for (score, _), (total, _) in zip(dense, wanted, strict=True))


def test_what_is_generated_is_what_is_scored_as_greedy(make: Any) -> None:
    lm = make(POLICIES[0], batch_size=4)
    ids = [lm.tok_encode(line) for line in LINES]
    with lm.applying():
        said = [lm.model.generate(torch.tensor([row]), max_new_tokens=5, do_sample=False)[0, len(row) :] for row in ids]
    right = [((line, ""), row, tokens.tolist()) for line, row, tokens in zip(LINES, ids, said, strict=True)]
    wrong = [(text, row, [*tokens[:-1], (tokens[-1] + 1) % 260]) for text, row, tokens in right]
    assert all(greedy for _, greedy in lm._loglikelihood_tokens(right))
    assert not any(greedy for _, greedy in lm._loglikelihood_tokens(wrong))


@pytest.mark.parametrize("policy", POLICIES)
def test_generation_halts_and_does_not_depend_on_batch_mates(policy: str, make: Any) -> None:
    alone, together = make(policy).generate_until(GENERATED), make(policy, batch_size=3).generate_until(GENERATED)
    assert alone == together
    assert alone != make().generate_until(GENERATED)


def test_a_prompt_that_is_too_long_loses_its_beginning(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    context, ending = list(range(5, 105)), [7, 8, 9]
    cut = make(POLICIES[0], max_length=80)
    with caplog.at_level(logging.WARNING):
        answer = cut._loglikelihood_tokens([(None, context, ending)])
    assert answer == make(POLICIES[0])._loglikelihood_tokens([(None, context[-78:], ending)])
    assert "cut to its last 78" in caplog.text
    assert len(cut.cut) == 1


@pytest.mark.parametrize("policy", ["dense", *POLICIES])
def test_a_context_that_is_cut_counts_once_whatever_follows_it(policy: str, make: Any) -> None:
    lm = make(policy, max_length=80)
    choices = [(None, list(range(5, 105)), [7, ending]) for ending in (8, 9, 10)]
    lm._loglikelihood_tokens([*choices, (None, list(range(5, 55)), [7])])
    assert len(lm.cut) == 1


@pytest.mark.parametrize("policy", ["dense", *POLICIES])
def test_prompts_that_are_cut_are_counted(policy: str, make: Any) -> None:
    lm, whole = make(policy, batch_size=3, max_length=60), make(policy, batch_size=3)
    lengths = [len(whole.tok_encode(request.args[0])) for request in GENERATED]
    room = 60 - max(request.args[1]["max_gen_toks"] for request in GENERATED)
    assert 0 < sum(length > room for length in lengths) < len(lengths)
    lm.generate_until(GENERATED)
    whole.generate_until(GENERATED)
    assert (len(lm.cut), len(whole.cut)) == (sum(length > room for length in lengths), 0)


def test_short_prompts_stay_whole_where_asked(make: Any) -> None:
    whole = make(POLICIES[0], min_prompt_tokens=10_000)
    for (score, greedy), (full, right) in zip(whole.loglikelihood(SCORED), make().loglikelihood(SCORED), strict=True):
        assert score == pytest.approx(full, abs=1e-4)
        assert greedy == right


def test_the_model_is_as_before(make: Any) -> None:
    lm = make(POLICIES[0])
    before = attributes(lm.model)
    lm.loglikelihood(SCORED)
    lm.generate_until(GENERATED)
    assert attributes(lm.model) == before


def test_whole_texts_are_refused_where_prompts_halt(make: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"a task scores every token.*policy=dense"):
        make(POLICIES[0]).loglikelihood_rolling(ROLLED)


def test_options_of_the_policy_may_stand_by_themselves(make: Any) -> None:
    for policy, whole in [
        ("dash", "dash:keep_first=4,scope=text"),
        ("dash:start=1+random:start=2", "dash:start=1,keep_first=4,scope=text+random:start=2,keep_first=4,scope=text"),
    ]:
        lm = make(policy, keep_first=4, scope="text")
        assert lm.policy_text == whole
        assert lm.policy == parse_method(whole)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"policy": "dash", "revision": "main"}, PolicyError, "no option 'revision'"),
        ({"policy": "dash:start=1", "start": 2}, PolicyError, "start is given twice: as 1 in 'dash:start=1', and as 2"),
        ({"policy": "dash:start=5"}, PolicyError, "leaves no deeper layer"),
        ({"policy": "dash", "batch_size": "auto"}, InputError, "give a number"),
        ({"policy": "llmlingua2:encoder=/no/such"}, ModelError, "cannot load the encoder /no/such"),
    ],
)
def test_what_cannot_run_is_refused_at_once(options: dict[str, Any], error: type, complaint: str, make: Any) -> None:
    with pytest.raises(error, match=complaint):
        make(**options)


def test_a_model_spread_by_device_map_scores_the_same(make: Any) -> None:
    spread = make(POLICIES[0], device=None, device_map="auto")
    assert spread.loglikelihood(SCORED) == make(POLICIES[0]).loglikelihood(SCORED)


def test_a_spread_model_in_several_processes_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="use one of them"):
        make(device=None, device_map="auto")


def test_lm_eval_knows_the_model_by_name() -> None:
    assert get_model("deltahalt") is DeltahaltLM
    (entry,) = entry_points(group="lm_eval.models", name="deltahalt")
    assert entry.load() is DeltahaltLM


STAGES = ["d3:alpha=0.7,core=2", "gemfilter:start=3,pruning_ratio=0.5,keep_first=2,keep_last=4"]


def by_hand(lm: DeltahaltLM, context: str, ending: str, ends: tuple[int, int] | None = None) -> float:
    """Log-likelihood of one request under a method of another stage: its prompt alone, its answer step by step."""
    tokens, later = lm._encode_pair(context, ending)
    cache, total = DynamicCache(config=lm.model.config), 0.0
    with lm.applying() as applied, torch.inference_mode():
        prompt = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
        logits = lm.model(**applied.shorten(prompt, [ends]), **{CACHE: cache}, logits_to_keep=1).logits[0, -1]
        for token in later:
            total += float(logits.log_softmax(-1)[token])
            logits = lm.model(torch.tensor([[token]]), **{CACHE: cache}).logits[0, -1]
    return total


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("policy", STAGES)
def test_methods_of_other_stages_are_scored_step_by_step(policy: str, batch: int, make: Any) -> None:
    lm = make(policy, batch_size=batch)
    scores = [score for score, _ in lm.loglikelihood(requests("loglikelihood", *PAIRS))]
    assert scores == pytest.approx([by_hand(lm, *pair) for pair in PAIRS], abs=1e-4)
    dense = [score for score, _ in make().loglikelihood(requests("loglikelihood", *PAIRS))]
    assert scores != pytest.approx(dense, abs=1e-3)
    with pytest.raises(UnsupportedError, match="policy=dense"):
        lm.loglikelihood_rolling(ROLLED)


@pytest.mark.parametrize("policy", STAGES)
def test_methods_of_other_stages_generate_alike_in_a_batch(policy: str, make: Any) -> None:
    alone, together = make(policy).generate_until(GENERATED), make(policy, batch_size=3).generate_until(GENERATED)
    assert alone == together
    assert alone != make().generate_until(GENERATED)


@pytest.mark.parametrize("policy", ["dense", *STAGES])
def test_what_a_process_does_once_is_in_no_samples_seconds(
    policy: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prompt runs once before it is measured: a clock that counts prefills says so."""
    lm = make(policy)
    prefills, measured = [], []
    forward = lm.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs["input_ids"]
        if ids.shape[1] > 1:
            prefills.append(ids)
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", watched)
    add = type(lm.spent).add
    monkeypatch.setattr(type(lm.spent), "add", lambda *given: (measured.append(len(prefills)), add(*given)))
    lm.generate_until(GENERATED[:2])
    assert measured == [2, 3]
    lm.generate_until(GENERATED[2:3])
    assert measured == [2, 3, 4]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_prompt_tokens_are_counted_before_a_method_shortens_them(batch_size: int, make: Any) -> None:
    full, short = make(batch_size=batch_size), make(STAGES[1], batch_size=batch_size)
    for lm in (full, short):
        lm.generate_until(GENERATED)
    assert short.spent.prompt_tokens == full.spent.prompt_tokens > 0


def test_only_a_documents_own_tokens_are_dropped_where_the_task_gives_it_apart(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, read = LINES[1], []
    lm = make("gemfilter:start=3,count=5")
    own = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, context: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        read.append(self.tok_decode(context[0].tolist()))
        return own(self, context, **kwargs)

    monkeypatch.setattr(DeltahaltLM, "_model_generate", watched)
    prompt = f"Read this. {document}Now say when. " + "And why? " * 12
    arguments = (prompt, {"until": [], "max_gen_toks": 2, "do_sample": False})
    for doc in ({"context": document, "question": "when"}, {"input": document, "question": "when"}):
        lm.generate_until([Instance("generate_until", doc, arguments, 0, metadata=("a task", 0, 1))])
    lm.generate_until([Instance("generate_until", {"input": prompt}, arguments, 0, metadata=("a task", 0, 1))])
    first, second, unknown = read
    assert first == second
    before, after = prompt.split(document.strip())
    assert first.startswith(before)
    assert first.endswith(after)
    assert len(lm.tok_encode(first)) < len(lm.tok_encode(before + after)) + 8
    assert not unknown.endswith(after)


def test_a_policy_does_not_tokenize_its_prompts_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltahalt.integrations.lm_eval.context_ends", lambda *given: pytest.fail("tokenized again"))
    lm = make("dash:start=2")
    arguments = (LINES[1], {"until": [], "max_gen_toks": 2, "do_sample": False})
    doc = {"context": LINES[1][:100], "question": "when"}
    (answer,) = lm.generate_until([Instance("generate_until", doc, arguments, 0, metadata=("a task", 0, 1))])
    assert answer


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_question_that_the_task_knows_is_looked_for(
    batch_size: int, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    own = DeltahaltLM.applying

    def watched(self: DeltahaltLM, asked: Any = None) -> Any:
        given.append(asked)
        return own(self, asked)

    monkeypatch.setattr(DeltahaltLM, "applying", watched)
    lm = make("both-ends:start=2,pruning_ratio=0.5,keep_first=4,keep_last=4,reach=8", batch_size=batch_size)
    settings = {"until": [], "max_gen_toks": 2, "do_sample": False}
    questions = ["Who wrote it all down?", "When did they write it down?"]
    known = [
        Instance("generate_until", {"question": one}, (f"{one} {line}", settings), 0, metadata=("a task", 0, 1))
        for one, line in zip(questions, LINES, strict=False)
    ]
    lm.generate_until(known)
    assert sorted({one for asked in given if asked for one in asked}) == sorted(questions)
    given.clear()
    endings = [Instance("loglikelihood", one.doc, (one.args[0], " yes"), 0, metadata=("a task", 0, 1)) for one in known]
    lm.loglikelihood(endings)
    assert sorted({one for asked in given if asked for one in asked}) == sorted(questions)
    given.clear()
    elsewhere = {"question": "What is not in the prompt at all?"}
    lm.generate_until([Instance("generate_until", elsewhere, (LINES[0], settings), 0, metadata=("a task", 0, 1))])
    assert not any(given)
