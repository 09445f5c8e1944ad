"""Read a document from a file or standard input, and put it into a prompt with a question."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltahalt.errors import InputError

MOST_BYTES = 64 * 2**20  # of a document: above what ten million tokens take
WIDEST = 512  # characters: no vocabulary has a longer token


def read_document(source: str) -> str:
    """The text of the file `source`, or of standard input for "-".

    Raises InputError for what is not text, and for more than `MOST_BYTES`, of which no more than that is read.
    """
    try:
        if source == "-":
            raw = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(source).expanduser().open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # also a null byte in the name, or an unknown home
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {source}: {reason}. Give a text file, or - for standard input") from error
    if len(raw) > MOST_BYTES:
        raise InputError(f"{source} has more than {MOST_BYTES:,} bytes, which no model reads: give a shorter document")
    if b"\0" in raw:
        raise InputError(f"{source} is binary, not text: convert it to plain text first")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text (byte {error.start}): convert it, as with iconv") from error
    if not text.strip():
        raise InputError(f"{source} is empty: give a document with some text")
    return text


def build_prompt(
    tokenizer: PreTrainedTokenizerBase, config: Any, document: str, question: str, *, answer: int = 0
) -> BatchEncoding:
    """Token ids [1, T] and attention mask of one prompt, the question last, in the model's chat format if it has one.

    answer: tokens that may follow. Raises InputError if the question is empty or the model was not made for so many.
    """
    check_question(question)
    return encode_turn(tokenizer, config, f"{document}\n\n{question}", answer=answer)


def check_question(question: str) -> None:
    """Raise InputError for a question that is empty or cannot be encoded."""
    if not question.strip():
        raise InputError("the question is empty: ask something about the document")
    require_unicode(question, "the question")


def require_unicode(text: str, what: str) -> None:
    """Raise InputError for text with half a character, as bytes of another encoding become; `what` names the text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not valid Unicode: it has {text[error.start]!r} at character {error.start}; write it in UTF-8"
        ) from error


def require_short(text: str, config: Any, widest: int = WIDEST) -> None:
    """Raise InputError for text that has more tokens than the model takes, though no token had under `widest` letters.

    This needs no tokenizer, and keeps a text of many megabytes from one.
    """
    fewest, limit = len(text) // widest, context_size(config)
    if fewest > limit:
        raise InputError(
            f"the prompt has {len(text):,} characters, which are more than {fewest:,} tokens, but the model takes "
            f"{limit:,}: give a shorter document"
        )


def encode_turn(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, lead: str = "", *, answer: int = 0
) -> BatchEncoding:
    """Token ids [1, T] and attention mask of one user's turn, in the model's chat format if it has one.

    lead: the beginning of the model's answer. answer: tokens that may follow. Raises InputError if the model was not
    made for so many, or the text is not valid Unicode.
    """
    text = format_turn(tokenizer, text, lead)
    return encode_text(tokenizer, config, text, special=not tokenizer.chat_template, answer=answer)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, *, special: bool, answer: int = 0
) -> BatchEncoding:
    """Token ids [1, T] and attention mask of a text as it is. special: with the tokenizer's special tokens around it.

    answer, and what is raised: as for `encode_turn`.
    """
    require_unicode(text, "the prompt")
    if len(text) > 8 * context_size(config):  # seldom, since the vocabulary takes a while to walk through
        require_short(text, config, max(map(len, tokenizer.get_vocab())))
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    require_room(prompt["input_ids"].shape[1], answer, config, "give a shorter document")
    return prompt


def context_size(config: Any) -> int:
    """How many tokens a model with this configuration takes, prompt and answer together."""
    return int(config.get_text_config().max_position_embeddings)


def require_room(prompt: int, answer: int, config: Any, advice: str) -> None:
    """Raise InputError where a prompt, and an answer, of these numbers of tokens are more than the model takes."""
    limit = context_size(config)
    if prompt > limit:
        raise InputError(f"the prompt has {prompt:,} tokens, but the model takes {limit:,}: {advice}")
    if prompt + answer > limit:
        raise InputError(
            f"the prompt has {prompt:,} tokens and the answer may have {answer:,}, but the model takes {limit:,} in "
            f"all: allow {limit - prompt:,} new tokens at most, or {advice}"
        )


def format_turn(tokenizer: PreTrainedTokenizerBase, text: str, lead: str = "") -> str:
    """One user's turn in the model's chat format, if it has one, and the beginning of the model's answer."""
    return format_chat(tokenizer, [{"role": "user", "content": text}]) + lead


def format_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]], *, answered: bool = True
) -> str:
    """A chat in the model's chat format; without one, the messages with blank lines between.

    messages: each a `role` and its `content`. A system prompt goes before the user's first words where the format has
    no place for one. answered: whether the model's turn comes next.
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
