"""Read a document from a file or standard input, and put it into a prompt with a question."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltahalt.errors import InputError


def read_document(source: str) -> str:
    """The text of the file `source`, or of standard input for "-". Raises InputError for what is not text."""
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {source}: {error.strerror}. Give a text file, or - for standard input"
        ) from error
    if b"\0" in raw:
        raise InputError(f"{source} is binary, not text: convert it to plain text first")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text (byte {error.start}): convert it, as with iconv") from error
    if not text.strip():
        raise InputError(f"{source} is empty: give a document with some text")
    return text


def build_prompt(tokenizer: PreTrainedTokenizerBase, config: Any, document: str, question: str) -> BatchEncoding:
    """Token ids [1, T] and attention mask of one prompt, the question last, in the model's chat format if it has one.

    Raises InputError if the question is empty or the model was not made for so long a prompt.
    """
    if not question.strip():
        raise InputError("the question is empty: ask something about the document")
    return encode_turn(tokenizer, config, f"{document}\n\n{question}")


def encode_turn(tokenizer: PreTrainedTokenizerBase, config: Any, text: str, lead: str = "") -> BatchEncoding:
    """Token ids [1, T] and attention mask of one user's turn, in the model's chat format if it has one.

    lead: the beginning of the model's answer. Raises InputError if the model was not made for so long a prompt.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    prompt = tokenizer(text + lead, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    tokens, limit = prompt["input_ids"].shape[1], config.max_position_embeddings
    if tokens > limit:
        raise InputError(f"the prompt has {tokens} tokens, but the model takes {limit}: give a shorter document")
    return prompt


def to_device(prompt: BatchEncoding, device: torch.device) -> dict[str, torch.Tensor]:
    """The prompt's tensors that a model takes, on its device."""
    return {name: prompt[name].to(device) for name in ("input_ids", "attention_mask")}
