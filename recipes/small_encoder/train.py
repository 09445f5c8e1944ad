"""Train a small encoder that LLMLingua-2 can run with, where no trained one can be had.

usage: python train.py --out encoder --log log.jsonl [--texts FILE.jsonl] [--teacher MODEL] [--passages N] ...

A token classifier of BERT's architecture, with a tokenizer of its own, learns which words a causal language model finds
surprising (labels.py): a stand-in for the published encoder, which learned from GPT-4. --texts: objects with a `text`
each; without it, what every Python installation has to read. Then

    deltahalt bench --text README.md --policies llmlingua2:encoder=encoder

Needs what deltahalt needs. A line of --log is a JSON object; scores are of held-out words. The same seed on the same
machine gives the same encoder.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from labels import kept, python_texts, split, surprisals, word_ends
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from deltahalt.lab.jsonl import read_jsonl
from deltahalt.loading.models import load
from deltahalt.methods.llmlingua2 import CHUNK, cuts, load_encoder, tokenize, word_chances

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
IGNORED = -100
Example = tuple[list[int], list[int]]  # a chunk's tokens, and the label of each


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A tokenizer whose pieces are learned from the texts; the same texts give the same pieces, as of BPE alone."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[*SPECIAL.values()], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CHUNK, **SPECIAL)


def build_model(tokenizer: Any, layers: int, hidden: int) -> Any:
    """The classifier with random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=CHUNK,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "drop", 1: "keep"},
    )
    return BertForTokenClassification(config)


def examples(tokenizer: Any, text: str, words: np.ndarray, ends: Sequence[int]) -> Iterator[Example]:
    """A passage in the chunks that LLMLingua-2 will cut it into; each token has the label of its word."""
    ids = tokenize(tokenizer, text)["input_ids"]
    labels = np.repeat(words.astype(int), np.diff([0, *ends])).tolist()
    for begin, end in cuts(tokenizer.convert_ids_to_tokens(ids), CHUNK - 2):
        marks = tokenizer.cls_token_id, tokenizer.sep_token_id
        yield [marks[0], *ids[begin:end], marks[1]], [IGNORED, *labels[begin:end], IGNORED]


def padded(batch: Sequence[Example], pad: int, device: str) -> tuple[Tensor, Tensor]:
    """Tokens and labels, [B, longest] each."""
    longest = max(len(ids) for ids, _ in batch)
    ids, labels = (
        torch.tensor([part + [fill] * (longest - len(part)) for part in parts], device=device)
        for parts, fill in zip(zip(*batch, strict=True), (pad, IGNORED), strict=True)
    )
    return ids, labels


def schedule(progress: float) -> float:
    """Learning rate's share of its peak: a short warm-up, then half a cosine to zero."""
    return min(progress / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))


def train(model: Any, chunks: list[Example], options: argparse.Namespace) -> Iterator[float]:
    """Yields the mean loss of each epoch, in the midst of it."""
    draw, pad, device = random.Random(options.seed), model.config.pad_token_id, str(model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    steps = options.epochs * math.ceil(len(chunks) / options.batch)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule((step + 1) / steps))
    for _ in range(options.epochs):
        model.train()
        losses = []
        mixed = draw.sample(chunks, len(chunks))
        for first in range(0, len(mixed), options.batch):
            ids, labels = padded(mixed[first : first + options.batch], pad, device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
                logits = model(ids, attention_mask=(ids != pad).long()).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        yield float(torch.stack(losses).mean())


def scores(said: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Accuracy, and F1 of the words to keep."""
    both = int((said & wanted).sum())
    return {
        "accuracy": round(float((said == wanted).mean()), 4),
        "f1": round(2 * both / max(1, int(said.sum() + wanted.sum())), 4),
    }


def held_out_scores(model: Any, tokenizer: Any, passages: Sequence[str], wanted: np.ndarray) -> dict[str, float]:
    """`scores` on whole passages, with words as LLMLingua-2 reads them."""
    model.eval()
    said = [chance > 0.5 for text in passages for _, _, chance in word_chances(model, tokenizer, text)]
    return scores(np.array(said), wanted)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Label, train and save; yields what there is to say on the way."""
    if options.texts is None:
        texts = python_texts()
    else:
        texts = [row["text"] for _, row in read_jsonl(options.texts, fields={"text": str})]
    training, held_out = split(texts, options.passages, options.seed)
    tokenizer = build_tokenizer(training, options.vocabulary)
    teacher = load(options.teacher)
    chunks: list[Example] = []
    wanted = []
    for number, text in enumerate([*training, *held_out]):
        token_ends, text_ends = word_ends(tokenizer, text)
        words = kept(surprisals(teacher, text, text_ends), options.keep)
        if number < len(training):
            chunks += examples(tokenizer, text, words, token_ends)
        else:
            wanted.append(words)
    truth = np.concatenate(wanted)
    yield {
        "teacher": teacher.name,
        "passages": len(training),
        "held_out": len(held_out),
        "tokens": sum(len(ids) for ids, _ in chunks),
        "words_held_out": len(truth),
        "drop_all": scores(np.zeros_like(truth), truth),
        "keep_all": scores(np.ones_like(truth), truth),
    }
    torch.manual_seed(options.seed)
    model = build_model(tokenizer, options.layers, options.hidden).to(teacher.model.device)
    yield {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}
    del teacher
    for epoch, loss in enumerate(train(model, chunks, options), 1):
        yield {"epoch": epoch, "loss": round(loss, 4), **held_out_scores(model, tokenizer, held_out, truth)}
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    yield {"loaded": held_out_scores(*load_encoder(str(options.out), str(model.device)), held_out, truth)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder and its tokenizer")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="JSONL, an object with `text` a line")
    parser.add_argument("--teacher", default="smollm2-135m", help="the language model whose surprisals are learned")
    parser.add_argument("--keep", type=float, default=0.333, help="share of words that are labelled as kept")
    parser.add_argument("--passages", type=int, default=1200)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16, help="chunks of at most 512 tokens")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, and write the log."""
    options, start = arguments(), time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("w", encoding="utf-8") as file:
        for row in run(options):
            line = json.dumps({"seconds": round(time.monotonic() - start, 1), **row})
            print(line, flush=True)  # noqa: T201
            print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
