"""BM25: scores against a naive reference, chunks and neighbours, and what it costs."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import InputError, PolicyError
from deltahalt.flops import KNOWN_SHAPES, dense_loads, true_flops
from deltahalt.loading.models import LoadedModel
from deltahalt.methods import bm25
from deltahalt.methods.applying import applying
from deltahalt.methods.bm25 import BM25, words
from deltahalt.methods.prompt_stage import ratio_for
from deltahalt.methods.registry import parse_method

CHUNKS = ["the tide is in", "a plum costs 42 marks", "the saw is in the mill", "nobody knows the mill", "plum cake"]
QUERY = "What does the plum cost in the mill?"


def naive(query: list[str], chunks: list[list[str]], k1: float, b: float) -> list[float]:
    """BM25 as Lucene has it, word by word."""
    mean = sum(map(len, chunks)) / len(chunks)
    scores = []
    for chunk in chunks:
        score = 0.0
        for word in set(query):
            holding = sum(word in other for other in chunks)
            weight = math.log(1 + (len(chunks) - holding + 0.5) / (holding + 0.5))
            times = chunk.count(word)
            score += weight * times / (times + k1 * (1 - b + b * len(chunk) / mean))
        scores.append(score)
    return scores


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("bm25s")


def shortened(loaded: LoadedModel, method: BM25, text: str, ends: Any = None) -> str:
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with applying(loaded.model, method, loaded.tokenizer) as applied:
        short = applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [ends])
    return str(loaded.tokenizer.decode(short["input_ids"][0]))


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_scores_are_bm25(k1: float, b: float) -> None:
    chunks = [words(chunk) for chunk in CHUNKS]
    found = BM25(k1=k1, b=b).matches(words(QUERY), chunks)
    assert found == pytest.approx(naive(words(QUERY), chunks, k1, b), abs=1e-5)


def test_a_word_asked_twice_counts_once() -> None:
    chunks = [words(chunk) for chunk in CHUNKS]
    assert BM25().matches(["plum", "plum", "tide"], chunks) == BM25().matches(["plum", "tide"], chunks)


@pytest.mark.parametrize(("query", "chunks"), [([], [["a"]]), (["a"], [[], []])])
def test_where_there_are_no_words_all_chunks_are_alike(query: list[str], chunks: list[list[str]]) -> None:
    assert BM25().matches(query, chunks) == [0.0] * len(chunks)


def test_chinese_is_read_by_characters() -> None:
    assert words("王芳的Schlüssel 42") == ["王", "芳", "的", "schlüssel", "42"]


def test_the_chunk_that_both_ends_name_stays_with_its_better_neighbour(loaded_tiny: LoadedModel) -> None:
    filler = [f"{letter * 14}. " for letter in "bcdefghijk"]
    filler[5], filler[4] = "The rare zebra. ", "asking asking a "
    text = "asking zebra... " + "".join(filler) + " ...where is it?"
    method = BM25(chunk=16, keep_first=16, keep_last=16, pruning_ratio=0.8)
    assert [len(piece) for piece in filler] == [16] * 10
    ids = len(loaded_tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
    kept = shortened(loaded_tiny, method, text)
    assert "zebra. " in kept
    assert "asking a" in kept
    assert ids - len(loaded_tiny.tokenizer(kept, add_special_tokens=False)["input_ids"]) == round(0.8 * (ids - 32))


def test_a_neighbour_gets_a_share_of_the_score() -> None:
    class Tokens:
        decode = staticmethod(lambda ids: " ".join(f"w{int(token)}" for token in ids))

    ids = torch.tensor([7, 1, 2, 3, 4, 7, 5, 6, 8, 9])
    alone = BM25(chunk=2, neighbour=0.0).score(None, Tokens, ids, slice(1, 9))[1]
    shared = BM25(chunk=2, neighbour=0.25).score(None, Tokens, ids, slice(1, 9))[1]
    hit = float(alone[4])
    assert alone.tolist() == pytest.approx([0, 0, 0, 0, hit, hit, 0, 0])
    assert shared.tolist() == pytest.approx([0, 0, hit / 4, hit / 4, hit, hit, hit / 4, hit / 4])


def test_it_costs_the_full_model_on_what_is_kept() -> None:
    shape = KNOWN_SHAPES["qwen2.5-7b"]
    method = BM25(pruning_ratio=0.5, keep_first=256, keep_last=128)
    kept = 384 + (8_192 - 384) // 2
    assert method.flops(shape, 8_192) == true_flops(shape, dense_loads(shape.layers, kept), kept)


@pytest.mark.parametrize("speedup", [1.3, 1.7, 2.5])
def test_a_ratio_is_found_for_equal_flops(speedup: float) -> None:
    shape, tokens = KNOWN_SHAPES["qwen2.5-7b"], 16_384
    full = true_flops(shape, dense_loads(shape.layers, tokens), tokens)
    ratio = ratio_for(BM25(), shape, tokens, full / speedup)
    assert full / BM25(pruning_ratio=ratio).flops(shape, tokens) == pytest.approx(speedup, rel=1e-3)
    assert BM25(pruning_ratio=ratio).flops(shape, tokens) <= full / speedup


def test_flops_that_no_ratio_reaches_are_refused() -> None:
    with pytest.raises(PolicyError, match="keep fewer tokens at the ends"):
        ratio_for(BM25(), KNOWN_SHAPES["qwen2.5-7b"], 1_024, 1.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"neighbour": 1.5}, "neighbour is 1.5"),
        ({"k1": -1.0}, "k1 is -1"),
        ({"b": 2.0}, "b is 2"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        BM25(**options)


def test_random_tokens_have_no_words(loaded_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="give a --model"), applying(loaded_tiny.model, BM25()):
        pass


def test_without_the_library_the_extra_is_named(loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "find_spec", lambda _: None)
    with (
        pytest.raises(InputError, match=r"deltahalt\[bm25\]"),
        applying(loaded_tiny.model, BM25(), loaded_tiny.tokenizer),
    ):
        pass


def test_it_has_a_name() -> None:
    assert parse_method("bm25:pruning_ratio=0.425,chunk=32") == BM25(pruning_ratio=0.425, chunk=32)


def test_jax_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('jax started')")
    code = (
        "from deltahalt.methods.bm25 import BM25; print(BM25().matches(['mill'], [['the', 'mill'], ['plum']])[1]); "
        "import jax"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ran.stdout.splitlines() == ["0.0", "jax started"], ran.stderr
