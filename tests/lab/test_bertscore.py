"""BERTScore of LooGLE's answers: by an encoder in a local folder, named in its rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from deltahalt import InputError
from deltahalt.errors import ModelError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

from deltahalt.lab.harness.bertscore import BertScore
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow
from helpers.local_tasks import tasks_of


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT with random weights and a tokenizer of whole words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["the", "a", "lamp", "harbour", "tide", "is", "in", "out"]]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder = tmp_path / "encoder"
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("said", "wanted"), [("the lamp is in", "a lamp is out"), ("tide", "the tide is in the harbour")]
)
def test_bertscore_matches_each_word_with_the_nearest(said: str, wanted: str, encoder: Path) -> None:
    score = BertScore(f"{encoder}:2")

    def states(text: str) -> list[torch.Tensor]:
        out = score.model(**score.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        return list(out.hidden_states[2][0])

    def mean_of_best(those: list[torch.Tensor], others: list[torch.Tensor]) -> float:
        best = [max(float(torch.cosine_similarity(one, other, dim=0)) for other in others) for one in those[1:-1]]
        return sum(best) / len(best)

    with torch.inference_mode():
        precision = mean_of_best(states(said), states(wanted))
        recall = mean_of_best(states(wanted), states(said))
    assert score.f1(said, wanted) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert score.f1(said, said) == pytest.approx(1, abs=1e-5)
    assert score.f1("", wanted) == 0
    assert score.f1("tide " * 50, wanted) == score.f1("tide " * 14, wanted)  # the encoder takes 16 tokens


def test_loogles_answers_are_scored_by_the_encoder_given(data: Path, encoder: Path, offline: None) -> None:
    tasks = tasks_of("loogle", data=data, bertscore=f"{encoder}:2")
    task = tasks["loogle_shortdep_qa"]
    scores = task.process_results(task.eval_docs[0], ["in the harbour"])
    assert scores == pytest.approx({"rouge_l": 1, "rouge_l_recall": 1, "bertscore_f1": 1}, abs=1e-5)
    assert set(tasks["loogle_shortdep_cloze"].aggregation()) == {"exact_match", "partial_match"}


def test_a_row_of_bertscore_names_its_encoder(evaluate: Callable[..., int], tmp_path: Path, encoder: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--bertscore", f"{encoder}:2", "--limit", "1", "--policy", "dense", "--rows", str(rows)]
    assert evaluate("--tasks", "loogle_shortdep_qa", *options) == 0
    named = {row.metric: row.encoder for row in read_rows(rows, EvalRow)}
    assert named == {"rouge_l": "", "rouge_l_recall": "", "bertscore_f1": f"{encoder.name}:2"}


@pytest.mark.parametrize(("layer", "complaint"), [("9", "no layer 9"), ("two", "MODEL:LAYER"), ("", "MODEL:LAYER")])
def test_an_encoders_layer_must_exist(layer: str, complaint: str, encoder: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        BertScore(f"{encoder}:{layer}")


def test_an_encoder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--bertscore none"):
        BertScore(f"{tmp_path / 'nothing'}:2")
