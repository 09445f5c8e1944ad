"""LLMLingua-2: words and their chances against a naive reference, and shares that count the reader's own tokens."""

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from deltahalt import InputError, ModelError, PolicyError
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying
from deltahalt.methods.llmlingua2 import CHUNK, LLMLingua2, cuts, load_encoder, word_chances
from helpers.encoders import save_bert, save_xlm_roberta

TEXT = "The tide is in, Mr. Fig; the saw isn't.\n\n  A plum costs 42 marks (or more!). " * 3
ENDS = (9, 13)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    return str(save_bert(folder) if request.param == "bert" else save_xlm_roberta(folder))


def naive_words(encoder: str, text: str) -> list[tuple[str, float]]:
    """Words of a text that fits into one chunk, told apart by the marks in their tokens; blanks left out."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForTokenClassification.from_pretrained(encoder).eval()
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0, 1:-1]
    chances = [float(pair[1].exp() / pair.exp().sum()) for pair in logits]
    words: list[tuple[str, list[float]]] = []
    for token, chance in zip(tokenizer.convert_ids_to_tokens(encoded["input_ids"][0, 1:-1]), chances, strict=True):
        begins = token.startswith("▁") if model.config.model_type == "xlm-roberta" else not token.startswith("##")
        if begins or token in string.punctuation:
            words.append(("", []))
        words[-1] = (words[-1][0] + token.removeprefix("##").removeprefix("▁"), [*words[-1][1], chance])
    return [(word, sum(own) / len(own)) for word, own in words]


def ids_of(loaded: LoadedModel, text: str) -> torch.Tensor:
    return loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def shortened(loaded: LoadedModel, method: LLMLingua2, ids: torch.Tensor, ends: Any = None) -> torch.Tensor:
    with applying(loaded.model, method, loaded.tokenizer) as applied:
        return applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [ends])["input_ids"][0]


def test_a_word_s_chance_is_the_mean_of_its_tokens(encoder: str) -> None:
    found = list(word_chances(*load_encoder(encoder, "cpu"), TEXT))
    wanted = naive_words(encoder, TEXT)
    assert [chance for _, _, chance in found] == pytest.approx([chance for _, chance in wanted], abs=1e-5)
    assert len({round(chance, 4) for _, chance in wanted}) > 10
    for (begin, end, _), (word, _) in zip(found, wanted, strict=True):
        assert TEXT[begin:end].strip() in {word, word or TEXT[begin:end]}


@pytest.mark.parametrize("words", [300, 1000])
def test_a_long_text_is_read_chunk_by_chunk(encoder: str, words: int) -> None:
    text = " ".join("the saw ends." if word % 50 == 49 else "plum" for word in range(words))
    found = [chance for _, _, chance in word_chances(*load_encoder(encoder, "cpu"), text)]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    encoded = tokenizer(text, add_special_tokens=False)
    wanted: list[float] = []
    bounds = list(cuts(tokenizer.convert_ids_to_tokens(encoded["input_ids"]), CHUNK - 2))
    assert len(bounds) > 1
    for begin, end in bounds:
        part = text[encoded.token_to_chars(begin).start : encoded.token_to_chars(end - 1).end]
        wanted += [chance for _, chance in naive_words(encoder, part)]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_chunks_end_behind_full_stops() -> None:
    names = list("ab.cd.efghijkl.m")
    assert ["".join(names[begin:end]) for begin, end in cuts(names, 7)] == ["ab.cd.", "efghijk", "l.m"]
    assert list(cuts([], 7)) == []


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.667, 0.9])
def test_the_share_counts_the_readers_tokens_exactly(ratio: float, encoder: str, loaded_tiny: LoadedModel) -> None:
    ids = ids_of(loaded_tiny, TEXT)
    method = LLMLingua2(encoder=encoder, pruning_ratio=ratio, keep_first=5, keep_last=7)
    eligible = ids.shape[1] - 12
    assert len(shortened(loaded_tiny, method, ids)) == 12 + eligible - round(ratio * eligible)


def test_the_likeliest_words_stay_and_the_ends_as_they_were(encoder: str, loaded_tiny: LoadedModel) -> None:
    ids = ids_of(loaded_tiny, TEXT)
    first, last = ENDS
    short = shortened(loaded_tiny, LLMLingua2(encoder=encoder, pruning_ratio=0.5), ids, ENDS)
    assert torch.equal(short[:first], ids[0, :first])
    assert torch.equal(short[-last:], ids[0, -last:])
    context = loaded_tiny.tokenizer.decode(ids[0, first:-last])
    chance: dict[int, float] = {}  # by character
    for begin, end, own in word_chances(*load_encoder(encoder, "cpu"), context):
        blank = begin
        while blank and context[blank - 1].isspace():  # white space goes with the first word behind it
            blank -= 1
            chance.setdefault(blank, own)
        chance.update(dict.fromkeys(range(begin, end), own))
    spans = loaded_tiny.tokenizer(context, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    scores = [chance.get(end - 1, 0.0) for _, end in spans]
    best = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: len(short) - first - last]
    assert torch.equal(short[first:-last], ids[0, first:-last][sorted(best)])
    assert len(set(scores)) > 10


def test_with_nothing_to_drop_the_prompt_is_as_it_was(encoder: str, loaded_tiny: LoadedModel) -> None:
    ids = ids_of(loaded_tiny, TEXT)
    assert torch.equal(shortened(loaded_tiny, LLMLingua2(encoder=encoder, pruning_ratio=0.0), ids), ids[0])
    assert torch.equal(shortened(loaded_tiny, LLMLingua2(encoder=encoder), ids[:, :90], (40, 60)), ids[0, :90])


def test_words_need_a_tokenizer(encoder: str, loaded_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="--model"), applying(loaded_tiny.model, LLMLingua2(encoder=encoder)):
        pass


def test_an_encoder_that_is_none_is_refused(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    ids = ids_of(loaded_tiny, TEXT)
    with pytest.raises(ModelError, match="cannot load the encoder no/such/folder"):
        shortened(loaded_tiny, LLMLingua2(encoder="no/such/folder"), ids)
    with pytest.raises(ModelError, match="3 labels"):
        shortened(loaded_tiny, LLMLingua2(encoder=str(save_bert(tmp_path, labels=3))), ids)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"pruning_ratio": 1}, "pruning_ratio is 1"), ({"keep_last": -1}, "keep_last")],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        LLMLingua2(**options)
