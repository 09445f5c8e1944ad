"""Read a document from a file or standard input, and build a prompt from it and a question."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltahalt.errors import InputError

MOST_BYTES = 64 * 2**20  # largest size of a document, more than ten million tokens
WIDEST = 512  # largest number of characters in a token of any vocabulary


def read_document(source: str) -> str:
    """Return the text of the file `source`, or of standard input for "-".

    Raises InputError if it is not UTF-8 text, is empty, or has more than `MOST_BYTES`; reading stops there.
    """
    try:
        if source == "-":
            raw = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(source).expanduser().open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # also for a null byte in the name, or an unknown home folder
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {source}: {reason}. Give a text file, or - for standard input") from error
    if len(raw) > MOST_BYTES:
        raise InputError(
            f"{source} has more than {MOST_BYTES:,} bytes, the largest size allowed: give a shorter document"
        )
    if b"\0" in raw:
        raise InputError(f"{source} is binary, not text: convert it to plain text first")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 text (byte {error.start}): convert it to UTF-8, for example with iconv"
        ) from error
    if not text.strip():
        raise InputError(f"{source} is empty: give a document with some text")
    return text


def build_prompt(
    tokenizer: PreTrainedTokenizerBase, config: Any, document: str, question: str, *, answer: int = 0
) -> BatchEncoding:
    """Return input_ids and attention_mask [1, T] of a document and then a question, in the model's chat format.

    answer: number of new tokens to leave room for. Raises InputError if the question is empty or the model's context is
    too short.
    """
    check_question(question)
    return encode_turn(tokenizer, config, f"{document}\n\n{question}", answer=answer)


def check_question(question: str) -> None:
    """Raise InputError for a question that is empty or cannot be encoded."""
    if not question.strip():
        raise InputError("the question is empty: give a question about the document or picture")
    require_unicode(question, "the question")


def require_unicode(text: str, what: str) -> None:
    """Raise InputError if the text has a lone surrogate, as wrongly decoded bytes do. what: its name in the error."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not valid Unicode: it has {text[error.start]!r} at character {error.start}; write it in UTF-8"
        ) from error


def require_short(text: str, config: Any, widest: int = WIDEST) -> None:
    """Raise InputError if the text has more tokens than the model takes, even with `widest` characters in each.

    This check runs without the tokenizer, which is slow on a text of many megabytes.
    """
    fewest, limit = len(text) // widest, context_size(config)
    if fewest > limit:
        raise InputError(
            f"the prompt has {len(text):,} characters, so more than {fewest:,} tokens, but the model takes {limit:,}: "
            "give a shorter document"
        )


def encode_turn(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, lead: str = "", *, answer: int = 0
) -> BatchEncoding:
    """Return input_ids and attention_mask [1, T] of one user turn, in the model's chat format if it has one.

    lead: the beginning of the model's answer. answer: number of new tokens to leave room for. Raises InputError if the
    model's context is too short, or the text is not valid Unicode.
    """
    text = format_turn(tokenizer, text, lead)
    return encode_text(tokenizer, config, text, special=not tokenizer.chat_template, answer=answer)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, *, special: bool, answer: int = 0
) -> BatchEncoding:
    """Return input_ids and attention_mask [1, T] of a text without chat format.

    special: whether to add the tokenizer's special tokens. `answer` and errors are as in `encode_turn`.
    """
    require_unicode(text, "the prompt")
    if len(text) > 8 * context_size(config):  # only then, since a pass over the vocabulary takes a while
        require_short(text, config, max(map(len, tokenizer.get_vocab())))
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    require_room(prompt["input_ids"].shape[1], answer, config, "give a shorter document")
    return prompt


def context_size(config: Any) -> int:
    """Return the number of tokens that the model takes, prompt and answer together."""
    return int(config.get_text_config().max_position_embeddings)


def require_room(prompt: int, answer: int, config: Any, advice: str) -> None:
    """Raise InputError, which ends in `advice`, if `prompt` and `answer` tokens are more than the model takes."""
    limit = context_size(config)
    if prompt > limit:
        raise InputError(f"the prompt has {prompt:,} tokens, but the model takes {limit:,}: {advice}")
    if prompt + answer > limit:
        raise InputError(
            f"the prompt has {prompt:,} tokens and the answer may have {answer:,}, but the model takes {limit:,} in "
            f"all: allow {limit - prompt:,} new tokens at most, or {advice}"
        )


def format_turn(tokenizer: PreTrainedTokenizerBase, text: str, lead: str = "") -> str:
    """Return one user turn in the model's chat format, if it has one, and `lead`, the beginning of the answer."""
    return format_chat(tokenizer, [{"role": "user", "content": text}]) + lead


def format_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]], *, answered: bool = True
) -> str:
    """Return a chat in the model's chat format; without one, the messages joined by blank lines.

    messages: each has a `role` and its `content`. A system prompt is put before the first user message if the format
    does not support one. answered: whether the model's turn comes next.
    """
    turns = [{name: str(value) for name, value in message.items()} for message in messages]
    if not tokenizer.chat_template:
        return "\n\n".join(turn["content"] for turn in turns)
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=answered, tokenize=False))
    except TemplateError:
        if len(turns) < 2 or turns[0]["role"] != "system":
            raise
        joined = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return format_chat(tokenizer, [joined, *turns[2:]], answered=answered)


def shared_start(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return the length of the common prefix of two rows of token ids [T]."""
    shorter = min(len(one), len(other))
    apart = (one[:shorter] != other[:shorter]).nonzero()
    return int(apart[0]) if len(apart) else shorter


def context_ends(tokenizer: PreTrainedTokenizerBase, text: str, context: str, tokens: int) -> tuple[int, int] | None:
    """Return the number of prompt tokens before and after `context`; None if that cannot be found.

    text: the whole prompt. tokens: number of its tokens, with leading special ones; fewer if its beginning was cut.
    """
    start, context = text.find(context.strip()), context.strip()
    if start < 0 or not context or not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    length = len(encoded["input_ids"])
    first, last = encoded.char_to_token(start), encoded.char_to_token(start + len(context) - 1)
    return (max(0, first + tokens - length), length - 1 - last) if first is not None and last is not None else None


def to_device(prompt: BatchEncoding, device: torch.device) -> dict[str, torch.Tensor]:
    """Return input_ids and attention_mask of the prompt on the model's device."""
    return {name: prompt[name].to(device) for name in ("input_ids", "attention_mask")}
