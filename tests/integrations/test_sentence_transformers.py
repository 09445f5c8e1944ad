"""Halting inside sentence-transformers: embeddings and scores are those of the last token, and all is put back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import deltahalt
from deltahalt import Dash, Dense, PolicyError, UnsupportedError
from helpers.heads import with_head
from helpers.tiny import attributes

pytest.importorskip("sentence_transformers", reason="it is an extra: pip install 'deltahalt[embed]'")

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer

from deltahalt.integrations.sentence_transformers import halting

HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
TEXTS = ["It was signed in the spring, by the harbour master." * 3, "A storm came. No light was seen." * 2, "Nothing."]
PAIRS = [("Who signed it?", TEXTS[0]), ("Who saw it?", TEXTS[1]), ("Why?", TEXTS[2])]


def made(folder: Path, pooling: str = "lasttoken") -> Any:
    """A SentenceTransformer on the tiny model, whose tokenizer pads on the right."""
    transformer = Transformer(str(folder))
    transformer.auto_model.float()
    transformer.tokenizer.pad_token, transformer.tokenizer.padding_side = "</s>", "right"
    return SentenceTransformer(modules=[transformer, Pooling(64, pooling), Normalize()], device="cpu")


@pytest.fixture
def embedder(tiny_folder: Path) -> Any:
    return made(tiny_folder)


@pytest.fixture
def reranker(tiny_folder: Path, tmp_path: Path) -> Any:
    """A CrossEncoder with a tiny classifier, whose tokenizer pads on the right."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token, tokenizer.padding_side = "</s>", "right"
    tokenizer.save_pretrained(tmp_path)
    config = {"num_labels": 1, "vocab_size": 260, "pad_token_id": tokenizer.pad_token_id}
    with_head("sequence", **config).save_pretrained(tmp_path)
    return CrossEncoder(str(tmp_path), device="cpu")


def test_an_embedding_is_the_last_tokens_state_of_each_text_alone(embedder: Any) -> None:
    with halting(embedder, Dash(**HALF)) as halted:
        vectors = embedder.encode(TEXTS, batch_size=2)
    assert halted.report.cache_bytes == 0
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = embedder.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad(), deltahalt.halting(embedder[0].auto_model, Dash(**HALF)):
            state = embedder[0].auto_model(ids).last_hidden_state[0, -1]
        assert np.abs(vector - torch.nn.functional.normalize(state, dim=0).numpy()).max() < 1e-5


def test_a_score_is_that_of_each_pair_alone(reranker: Any) -> None:
    with halting(reranker, Dash(**HALF)) as halted:
        scores = reranker.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=3)
    assert halted.report.stages
    assert halted.report.cache_bytes == 0
    for pair, score in zip(PAIRS, scores, strict=True):
        ids = reranker.tokenizer(*pair, return_tensors="pt").input_ids
        with torch.no_grad(), deltahalt.halting(reranker.model, Dash(**HALF)):
            assert abs(float(reranker.model(ids).logits) - float(score)) < 1e-5


@pytest.mark.parametrize("policy", [Dense(), Dash(**HALF | {"pruning_ratio": 0})], ids=["dense", "0"])
def test_where_nothing_halts_the_result_is_the_hosts(embedder: Any, reranker: Any, policy: Any) -> None:
    for model, run in ((embedder, lambda: embedder.encode(TEXTS)), (reranker, lambda: reranker.predict(PAIRS))):
        before, model.tokenizer.padding_side = model.tokenizer.padding_side, "left"
        expected = run()
        model.tokenizer.padding_side = before
        with halting(model, policy):
            assert np.array_equal(run(), expected)


def settings(model: Any) -> list[Any]:
    own = model.model if isinstance(model, CrossEncoder) else model[0].auto_model
    flat = [getattr(part, "can_flatten_inputs", None) for part in model.children()]
    return [model.tokenizer.padding_side, own.config.use_cache, flat, attributes(own)]


def test_after_the_block_all_is_as_before(embedder: Any, reranker: Any) -> None:
    for model in (embedder, reranker):
        for part in model.children():
            if hasattr(part, "can_flatten_inputs"):
                part.can_flatten_inputs = True  # as with FlashAttention
        before = settings(model)
        with halting(model, Dash(**HALF)):
            side, use_cache, flat, _ = settings(model)
            assert (side, use_cache, True in flat) == ("left", False, False)
        assert settings(model) == before
        with pytest.raises(ZeroDivisionError), halting(model, Dash(**HALF)):
            raise ZeroDivisionError
        assert settings(model) == before


def test_a_policy_that_reads_halted_tokens_has_its_cache(embedder: Any) -> None:
    with halting(embedder, "single-input-kv:start=3,keep_last=4") as halted:
        embedder.encode(TEXTS[:1])
    assert halted.report.cache_bytes > 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "weightedmean", "mean_sqrt_len_tokens"])
def test_other_poolings_are_refused(tiny_folder: Path, pooling: str) -> None:
    model = made(tiny_folder, pooling)
    before = settings(model)
    with pytest.raises(UnsupportedError, match=f"'{pooling}'.*no final state.*'lasttoken'"), halting(model, Dash()):
        pass
    assert settings(model) == before


REFUSED: dict[str, tuple[Callable[[Any], Any], Any, type[Exception], str]] = {
    "no pooling": (
        lambda own: SentenceTransformer(modules=[own[0]], device="cpu"),
        Dash(),
        UnsupportedError,
        "Pooling",
    ),
    "a model of transformers": (lambda own: own[0].auto_model, Dash(), UnsupportedError, r"deltahalt\.halting"),
    "no policy": (lambda own: own, None, PolicyError, "policy"),
    "a start too deep": (lambda own: own, Dash(start=9), PolicyError, "layer"),
}


@pytest.mark.parametrize(("model", "policy", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    embedder: Any, model: Callable[[Any], Any], policy: Any, error: type[Exception], words: str
) -> None:
    before = settings(embedder)
    with pytest.raises(error, match=words), halting(model(embedder), policy):
        pass
    assert settings(embedder) == before


def test_the_librarys_own_function_names_this_one(embedder: Any) -> None:
    with (
        pytest.raises(UnsupportedError, match=r"deltahalt\.integrations\.sentence_transformers"),
        deltahalt.halting(embedder, Dash()),
    ):
        pass
