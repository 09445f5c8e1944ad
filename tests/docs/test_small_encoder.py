"""The recipe of LLMLingua-2's stand-in encoder: labels against a naive reference, what is held out, a whole run."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from deltahalt import InputError
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying
from deltahalt.methods.llmlingua2 import LLMLingua2, load_encoder
from helpers.encoders import save_xlm_roberta

RECIPE = Path(__file__).parents[2] / "recipes" / "small_encoder"
TEXT = "The tide is in, Mr. Fig;\n\n the saw isn't: a plüm costs 42 marks."


@pytest.fixture(scope="module")
def recipe() -> Iterator[dict[str, ModuleType]]:
    """The recipe's modules, which import one another by bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE)
        yield {name: __import__(name) for name in ("labels", "train")}
        for name in ("labels", "train"):
            sys.modules.pop(name)


def test_a_word_s_surprisal_is_that_of_its_tokens(
    recipe: dict[str, ModuleType], loaded_tiny: LoadedModel, tmp_path: Path
) -> None:
    labels, tokenizer = recipe["labels"], load_encoder(str(save_xlm_roberta(tmp_path)), "cpu")[1]
    token_ends, ends = labels.word_ends(tokenizer, TEXT)
    words = [TEXT[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert [word.strip() for word in words][:8] == ["The", "tide", "is", "in", ",", "Mr", ".", "Fig"]
    assert token_ends[-1] == len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    encoded = loaded_tiny.tokenizer(TEXT, return_offsets_mapping=True)
    ids, wanted = [loaded_tiny.tokenizer.eos_token_id], [0.0] * len(words)
    for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        with torch.no_grad():
            logits = loaded_tiny.model(torch.tensor([ids])).logits[0, -1].double()
        nats = math.log(logits.exp().sum()) - float(logits[token])
        for place in range(begin, end):
            wanted[next(word for word, last in enumerate(ends) if place < last)] += nats / (end - begin)
        ids.append(token)
    found = labels.surprisals(loaded_tiny, TEXT, ends)
    assert found == pytest.approx(wanted, rel=1e-4)
    kept = labels.kept(found, 0.333)
    assert kept.sum() == pytest.approx(len(words) / 3, abs=1)
    assert found[kept].min() > found[~kept].max()


def test_held_out_passages_are_of_texts_of_their_own(recipe: dict[str, ModuleType]) -> None:
    split = recipe["labels"].split
    texts = [" ".join(f"{text}.{word}" for word in range(900)) for text in range(30)]
    training, held_out = split(texts, 40, seed=0)
    assert (len(training), len(held_out)) == (36, 4)
    seen, unseen = ({word.split(".")[0] for text in part for word in text.split()} for part in (training, held_out))
    assert seen
    assert unseen
    assert not seen & unseen
    words = {word for text in texts for word in text.split()}
    assert all(set(passage.split()) <= words for passage in training)  # none is cut
    assert max(map(len, training)) <= 2001
    assert split(texts, 40, seed=0) == (training, held_out)
    for few in (texts[:1], 40), (texts, 1):
        with pytest.raises(InputError, match="two texts and passages"):
            split(*few, seed=0)


def test_python_s_texts_are_help_topics_and_docstrings(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = (
        '"""Of a module."""\nclass A:\n    """Of a class."""\n    def f(self): """Of a method."""\ndef g(): return "no"'
    )
    for name in ("a.py", "deep/b.py", "site-packages/c.py", "test/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(module, encoding="utf-8")
    (tmp_path / "e.py").write_text("def:", encoding="utf-8")
    monkeypatch.setattr(
        recipe["labels"].sysconfig, "get_path", lambda name: str(tmp_path / name.removeprefix("stdlib"))
    )
    texts = recipe["labels"].python_texts()
    assert any("Truth Value Testing" in text for text in texts)
    assert [text for text in texts if "Of a" in text] == ["Of a module.\n\nOf a class.\n\nOf a method."] * 2


def test_the_same_texts_give_the_same_pieces(recipe: dict[str, ModuleType]) -> None:
    texts = [text for _, text in sorted(recipe["labels"].topics.items())][:10]
    tokenizers = [recipe["train"].build_tokenizer(texts, 500) for _ in range(3)]
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers}) == 1
    assert tokenizers[0].tokenize("the object, unchanged.")[:4] == ["▁the", "▁object", ",", "▁un"]


def test_a_token_is_labelled_as_its_word(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    tokenizer = load_encoder(str(save_xlm_roberta(tmp_path)), "cpu")[1]
    text = " ".join(["plum fig."] * 200)
    token_ends, ends = recipe["labels"].word_ends(tokenizer, text)
    chunks = list(recipe["train"].examples(tokenizer, text, np.arange(len(ends)) % 3 == 1, token_ends))
    assert len(chunks) > 1
    ids, labels = ([part for chunk in side for part in chunk[1:-1]] for side in zip(*chunks, strict=True))
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    assert {name for name, label in zip(names, labels, strict=True) if label} <= {"▁", *"fig"}
    assert "".join(name for name, label in zip(names, labels, strict=True) if label) == "▁fig" * 200
    assert all(chunk[0] == tokenizer.cls_token_id and chunk[-1] == tokenizer.sep_token_id for chunk, _ in chunks)
    assert all(own[0] == own[-1] == recipe["train"].IGNORED for _, own in chunks)


def test_it_learns_and_llmlingua2_runs_with_it(
    recipe: dict[str, ModuleType],
    loaded_tiny: LoadedModel,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A random teacher is surprised most where words are long.
    lines = [" ".join(f"a plum costs {n + text} marks of no consequence" for n in range(30)) for text in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    out, log = tmp_path / "encoder", tmp_path / "log.jsonl"
    options = ["--texts", tmp_path / "texts.jsonl", "--teacher", tiny_folder, "--out", out, "--log", log]
    small = ["--passages", 20, "--vocabulary", 200, "--layers", 1, "--hidden", 32, "--epochs", 4, "--batch", 2]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*options, *small, "--rate", 0.01])])
    recipe["train"].main()
    first, *epochs, last = [json.loads(line) for line in log.read_text().splitlines()]
    assert first["drop_all"]["accuracy"] == pytest.approx(1 - 0.333, abs=0.02)
    assert epochs[-1]["accuracy"] > first["drop_all"]["accuracy"] + 0.1
    assert epochs[-1]["f1"] > first["keep_all"]["f1"] + 0.1
    assert last["loaded"] == {name: epochs[-1][name] for name in ("accuracy", "f1")}  # saved as it was trained
    ids = loaded_tiny.tokenizer(lines[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
    method = LLMLingua2(encoder=str(out), pruning_ratio=0.5, keep_first=0, keep_last=0)
    with applying(loaded_tiny.model, method, loaded_tiny.tokenizer) as applied:
        short = applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["input_ids"]
    assert short.shape[1] == ids.shape[1] - round(0.5 * ids.shape[1])
    assert loaded_tiny.tokenizer.decode(short[0]).count("consequence") == 30
