"""The tokenizer of a GGUF file, with the special tokens that the file's own header names.

transformers converts the vocabulary; before 5.23 it takes other beginning or end tokens than the file's.
"""

import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedTokenizerFast

from deltahalt.errors import ModelError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the GGUF file `path`.

    Raises ModelError for a file that is no whole GGUF, or whose text transformers would split wrongly.
    """
    header = read_header(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    merges = header.get("tokenizer.ggml.model") == "llama"
    if merges and isinstance(backend.model, Unigram):
        raise ModelError(
            f"this version of transformers converts the tokenizer of {path.name} wrongly: "
            "install transformers 5.18 or newer, or give the model's original folder"
        )
    if header.get("tokenizer.ggml.pre") == "smollm":
        # transformers leaves out the split at digits, and so splits the blanks before them differently.
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    for role, key in ROLES.items():
        index = header.get(f"tokenizer.ggml.{key}")
        setattr(tokenizer, role, None if index is None else tokenizer.convert_ids_to_tokens(index))
    add_bos = header.get("tokenizer.ggml.add_bos_token", merges)
    tokenizer.add_bos_token = add_bos and tokenizer.bos_token is not None
    return tokenizer


def read_header(path: Path) -> dict[str, Any]:
    """The numbers and strings in the header of the GGUF file `path`, by key; arrays are left out.

    Raises ModelError for a file that is not GGUF version 2 or 3, or ends inside its header.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: check the path, or download it again")
        file.seek(0)
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            try:
                return _header(data)
            except (struct.error, KeyError, OverflowError, UnicodeDecodeError) as error:
                raise ModelError(
                    f"the header of {path} is damaged, or not GGUF version 2 or 3: download it again"
                ) from error


def _header(data: mmap) -> dict[str, Any]:
    (fields,) = struct.unpack_from("<Q", data, 16)  # after magic, version and number of tensors
    at, header = 24, {}
    for _ in range(fields):
        key, at = _value(data, at, STRING)
        (kind,) = struct.unpack_from("<I", data, at)
        value, at = _value(data, at + 4, kind)
        if kind != ARRAY:
            header[key] = value
    return header


def _value(data: mmap, at: int, kind: int) -> tuple[Any, int]:
    """The value at offset `at`, and the offset after it; of an array only the offset."""
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        (text,) = struct.unpack_from(f"{length}s", data, at + 8)
        return text.decode(), at + 8 + length
    if kind == ARRAY:
        element, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if element in SCALARS:
            return None, at + count * struct.calcsize(SCALARS[element])
        for _ in range(count):
            _, at = _value(data, at, element)
        return None, at
    (number,) = struct.unpack_from("<" + SCALARS[kind], data, at)
    return number, at + struct.calcsize(SCALARS[kind])
