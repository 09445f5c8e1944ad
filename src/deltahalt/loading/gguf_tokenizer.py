"""The tokenizer of a GGUF file, with the special tokens that the file's header defines.

transformers converts the vocabulary; before 5.23 it sets other begin and end tokens than those of the file.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedTokenizerFast

from deltahalt.errors import ModelError

ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in the GGUF file `path`.

    Raises ModelError for a file that is not a complete GGUF, or whose vocabulary transformers would convert wrongly.
    """
    header = read_header(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    merges = header.get("tokenizer.ggml.model") == "llama"
    if merges and isinstance(backend.model, Unigram):
        raise ModelError(
            f"this version of transformers converts the tokenizer of {path.name} wrongly: "
            "install transformers 5.18 or newer, or give the folder of the original model"
        )
    if header.get("tokenizer.ggml.pre") == "smollm":
        # transformers omits the split at digits, which also changes how spaces before digits are split.
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    for role, key in ROLES.items():
        index = header.get(f"tokenizer.ggml.{key}")
        setattr(tokenizer, role, None if index is None else tokenizer.convert_ids_to_tokens(index))
    add_bos = header.get("tokenizer.ggml.add_bos_token", merges)
    tokenizer.add_bos_token = add_bos and tokenizer.bos_token is not None
    return tokenizer


def read_header(path: Path) -> dict[str, Any]:
    """Return the numbers and strings in the header of the GGUF file `path`, by key; arrays are left out.

    Raises ModelError for a file that is not a complete GGUF.
    """
    try:
        fields = GGUFReader(path).fields.values()
        return {field.name: field.contents() for field in fields if field.types[:1] != [GGUFValueType.ARRAY]}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{path} is not a complete GGUF file: check the path, or download it again") from error
