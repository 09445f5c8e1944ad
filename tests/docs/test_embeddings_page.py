"""The examples in docs/embeddings.md run, and do what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import deltahalt
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.evaluation.readout.summary import summarize
from deltahalt.lab.rows.base import read_rows
from tools.rows_files import rows_file

RESULTS = Path(__file__).parents[2] / "results"
PAGE = (Path(__file__).parents[2] / "docs/embeddings.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DOCUMENTS = [
    "It was signed in the spring, by the harbour master. " * 10,
    "A storm came, and nobody saw the light. " * 14,
]
QUESTIONS = ["Who signed it?", "Who saw it?"]


def run(example: str, **names: Any) -> dict[str, Any]:
    exec(compile(example, "docs/embeddings.md", "exec"), names)
    return names


@pytest.fixture
def parts(tiny_folder: Path) -> dict[str, Any]:
    """A tokenizer that pads on the right, an AutoModel and a classifier of the tiny model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, padding_side="right", pad_token="</s>")
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, dtype=torch.float32, num_labels=2, pad_token_id=tokenizer.pad_token_id
    )
    model = AutoModel.from_pretrained(tiny_folder, dtype=torch.float32)
    return {"tokenizer": tokenizer, "model": model, "classifier": classifier}


def test_the_first_example_gives_each_texts_last_token(parts: dict[str, Any]) -> None:
    given = parts | {"documents": DOCUMENTS, "questions": QUESTIONS}
    names = run(EXAMPLES[0], **given)
    assert names["halted"].report.stages
    assert names["halted"].report.cache_bytes == 0
    model, classifier, tokenizer = (parts[name] for name in ("model", "classifier", "tokenizer"))
    for row, (question, document) in enumerate(zip(QUESTIONS, DOCUMENTS, strict=True)):
        with torch.no_grad(), deltahalt.halting(model, "auto"):
            state = model(**tokenizer(document, return_tensors="pt")).last_hidden_state[0, -1]
        with torch.no_grad(), deltahalt.halting(classifier, "auto"):
            scores = classifier(**tokenizer(question, document, return_tensors="pt")).logits[0]
        assert (names["embeddings"][row] - torch.nn.functional.normalize(state, dim=-1)).abs().max() < 1e-5
        assert (names["scores"][row] - scores).abs().max() < 1e-5


def test_the_pages_figures_are_those_of_the_rows() -> None:
    lines = summarize(read_rows(rows_file(RESULTS, "embed-qwen2.5-coder-1.5b"), EmbedRow))
    page = " ".join(PAGE.split())
    assert {line.texts for line in lines} == {40}
    assert f"a mean cosine of {lines[0].apart:.3f}" in page
    assert f"by {100 * 10 / (40 - 1):.0f} % by chance" in page
    by_method = {line.policy.partition(":")[0]: line for line in reversed(lines)}  # of a method the first: 1.7x
    default, drawn = by_method["both-ends"], by_method["random"]
    assert default.cosine > drawn.cosine
    assert default.overlap > drawn.overlap
    assert default.ndcg > drawn.ndcg + 0.02
    blind = by_method["dash-layer"]  # of auto-query-free
    assert (blind.overlap, blind.ndcg) > (default.overlap, default.ndcg)
    assert max(by_method[name].ndcg for name in ("dash", "bm25")) < drawn.ndcg
    ranked = summarize(read_rows(rows_file(RESULTS, "embed-queries-smollm2-135m"), EmbedRow))
    agreement = {line.policy.partition(":")[0]: line.agreement for line in ranked}
    assert agreement["max-sim"] > agreement["random"] + 0.3


def test_the_second_example_runs_in_sentence_transformers(parts: dict[str, Any], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="it is an extra: pip install 'deltahalt[embed]'")
    from sentence_transformers.models import Pooling, Transformer

    for name in ("model", "classifier"):
        parts[name].save_pretrained(tmp_path / name)
        parts["tokenizer"].save_pretrained(tmp_path / name)
    embedder = library.SentenceTransformer(modules=[Transformer(str(tmp_path / "model")), Pooling(64, "lasttoken")])
    reranker = library.CrossEncoder(str(tmp_path / "classifier"))
    names = run(EXAMPLES[1], embedder=embedder, reranker=reranker, documents=DOCUMENTS, questions=QUESTIONS)
    assert names["vectors"].shape == (2, 64)
    assert names["scores"].shape == (2, 2)
    assert embedder.tokenizer.padding_side == "right"
