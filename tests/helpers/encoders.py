"""Tiny token classifiers with random weights and real tokenizers, of the two kinds that LLMLingua-2 has."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram, WordPiece
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizerFast,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 2,
    "initializer_range": 0.5,  # so that words differ in what the model makes of them
}
LETTERS = [*string.ascii_letters, *string.digits, *string.punctuation]


def save_bert(folder: Path, *, labels: int = 2) -> Path:
    """A BERT whose words are WordPiece's."""
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
        "the",
        "##ing",
    ]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=False, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(names), max_position_embeddings=512, **SIZES | {"num_labels": labels})
    BertForTokenClassification(config).save_pretrained(folder)
    return folder


def save_xlm_roberta(folder: Path) -> Path:
    """An XLM-RoBERTa whose words begin with SentencePiece's mark of a blank."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁the", "▁T", "ing", "<mask>"]
    tokenizer = Tokenizer(Unigram([(name, -float(len(LETTERS) - len(name))) for name in names], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=len(names), max_position_embeddings=514, pad_token_id=1, **SIZES)
    XLMRobertaForTokenClassification(config).save_pretrained(folder)
    return folder
