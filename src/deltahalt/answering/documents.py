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
    text = format_turn(tokenizer, text, lead)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    tokens, limit = prompt["input_ids"].shape[1], config.max_position_embeddings
    if tokens > limit:
        raise InputError(f"the prompt has {tokens} tokens, but the model takes {limit}: give a shorter document")
    return prompt


def format_turn(tokenizer: PreTrainedTokenizerBase, text: str, lead: str = "") -> str:
    """One user's turn in the model's chat format, if it has one, and the beginning of the model's answer."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    return text + lead


def shared_start(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many tokens two rows of token ids [T] begin with in common."""
    shorter = min(len(one), len(other))
    apart = (one[:shorter] != other[:shorter]).nonzero()
    return int(apart[0]) if len(apart) else shorter


def context_ends(tokenizer: PreTrainedTokenizerBase, text: str, context: str, tokens: int) -> tuple[int, int] | None:
    """How many of a prompt's tokens lie before and after `context`; None where that cannot be known.

    text: the whole prompt; tokens: how many it has, special ones in front included, or less if its beginning was cut.
    """
    start, context = text.find(context.strip()), context.strip()
    if start < 0 or not context or not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    length = len(encoded["input_ids"])
    first, last = encoded.char_to_token(start), encoded.char_to_token(start + len(context) - 1)
    return (max(0, first + tokens - length), length - 1 - last) if first is not None and last is not None else None


def to_device(prompt: BatchEncoding, device: torch.device) -> dict[str, torch.Tensor]:
    """The prompt's tensors that a model takes, on its device."""
    return {name: prompt[name].to(device) for name in ("input_ids", "attention_mask")}
