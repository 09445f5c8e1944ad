"""GGUF files: the logits of the model that was converted, and the special tokens that the header names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map
from packaging.version import Version
from tokenizers.models import BPE

from deltahalt.errors import ModelError
from deltahalt.loading.gguf_tokenizer import load_gguf_tokenizer, read_header
from deltahalt.loading.models import LoadedModel, load, load_config
from helpers.tiny import LAYERS, SIZES, tiny

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
TYPES = {"add_bos_token": "add_bool", "pre": "add_string"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # transformers adds them to every qwen2
TH, BOS, EOS, SIZE = 256, 258, 259, 263


def begin(path: Path, architecture: str) -> GGUFWriter:
    """A GGUF file with the sizes of tests/tiny.py in its header."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    return writer


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def write_qwen2(byte_vocabulary: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Writes the qwen2 of tests/tiny.py as a GGUF file; options are `tokenizer.ggml` fields of its header."""
    pieces = [*byte_vocabulary, *SPECIAL]

    def write(**fields: Any) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = begin(path, "qwen2")
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(pieces)
        writer.add_token_types([TokenType.NORMAL] * BOS + [TokenType.CONTROL] * (SIZE - BOS))
        writer.add_token_merges(["t h", "i n"])
        writer.add_chat_template(TEMPLATE)
        for key, value in fields.items():
            getattr(writer, TYPES.get(key, "add_uint32"))(f"tokenizer.ggml.{key}", value)
        names = get_tensor_name_map(MODEL_ARCH.QWEN2, LAYERS)
        for name, weight in tiny("qwen2", vocab_size=SIZE).state_dict().items():
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.numpy())
        finish(writer)
        return path

    return write


def test_logits_are_those_of_the_model_that_was_converted(write_qwen2: Callable[..., Path]) -> None:
    path = write_qwen2(bos_token_id=BOS, eos_token_id=EOS)
    loaded = load(path, device="cpu")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():  # the header holds the norms' epsilon in single precision
        torch.testing.assert_close(loaded.model(ids).logits, tiny("qwen2", vocab_size=SIZE)(ids).logits)
    assert loaded.model.dtype is torch.float32
    assert not getattr(loaded.model, "is_quantized", False)
    assert load_config(path).eos_token_id == EOS


def test_dtype_of_unpacked_weights(write_qwen2: Callable[..., Path]) -> None:
    assert load(write_qwen2(bos_token_id=BOS), device="cpu", dtype="bfloat16").model.dtype is torch.bfloat16


@pytest.mark.parametrize("add_bos", [False, True])
def test_special_tokens_are_those_of_the_header(write_qwen2: Callable[..., Path], add_bos: bool) -> None:
    path = write_qwen2(bos_token_id=BOS, eos_token_id=EOS, padding_token_id=0, add_bos_token=add_bos)
    tokenizer = load(path, device="cpu").tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, EOS, 0)
    assert tokenizer.unk_token is None
    assert len(tokenizer) == SIZE
    assert tokenizer("the").input_ids == [BOS] * add_bos + [TH, tokenizer.convert_tokens_to_ids("e")]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "th"}], tokenize=True, return_dict=False)
    assert chat == [BOS, TH]


def test_padding_falls_back_to_the_end_token(write_qwen2: Callable[..., Path]) -> None:
    tokenizer = load(write_qwen2(eos_token_id=EOS), device="cpu").tokenizer
    assert (tokenizer.bos_token, tokenizer.pad_token) == (None, "</s>")
    assert tokenizer.padding_side == "left"


@pytest.fixture
def merging_tokenizer(tmp_path: Path) -> Path:
    """The header of a Gemma 3, whose pieces merge by rank: "ab" is one piece, and "b" alone scores best."""
    path = tmp_path / "gemma.gguf"
    writer = begin(path, "gemma3")
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_sliding_window(8)
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "ab", "a", "b", "c"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-1000.0] * 4 + [-9.0, -3.0, -1.0, -3.0])
    writer.add_token_types([TokenType.CONTROL] * 4 + [TokenType.NORMAL] * 4)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    finish(writer)
    return path


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.18"), reason="transformers reads it wrongly")
def test_pieces_that_merge(merging_tokenizer: Path) -> None:
    tokenizer = load_gguf_tokenizer(merging_tokenizer)
    assert isinstance(tokenizer.backend_tokenizer.model, BPE)
    assert tokenizer("abc").input_ids == [
        2,
        4,
        7,
    ]  # a file of this kind begins with <bos> unless it says otherwise


@pytest.mark.skipif(Version(transformers.__version__) >= Version("5.18"), reason="transformers reads it right")
def test_pieces_that_merge_are_refused_where_they_would_not(merging_tokenizer: Path) -> None:
    with pytest.raises(ModelError, match=r"install transformers 5\.18 or newer"):
        load(merging_tokenizer)


def test_the_header_is_read_in_every_type(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "all.gguf", "llama")
    numbers = {"uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 2**32 - 1}
    numbers |= {"int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1}
    values = numbers | {"bool": True, "string": "été"}
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(kind, value)
    for index, array in enumerate([["été", "x"], [1, -2], [0.5, 0.25], [True, False], [[1, 2], [3]]]):
        writer.add_array(f"array.{index}", array)
    writer.add_string("last", "z")
    finish(writer)
    header = read_header(tmp_path / "all.gguf")
    assert {key: header[key] for key in values} == values
    assert header["last"] == "z"
    assert "array.0" not in header


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"PK" * 1000)
    with pytest.raises(ModelError, match="is not a complete GGUF file"):
        load(tmp_path / "fake.gguf")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03, 0.9, 0.999])
def test_a_file_that_ends_early(write_qwen2: Callable[..., Path], share: float) -> None:
    path = write_qwen2(bos_token_id=BOS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="download it again") as caught:
        load(path)
    assert "protobuf" not in str(caught.value)  # what transformers 5.2 stumbles over next


@pytest.mark.real_weights
def test_the_bundled_tokenizer_splits_digits_first(smollm2: LoadedModel) -> None:
    """As the model was trained: otherwise one blank line before "1." costs it two tokens."""
    tokenizer = smollm2.tokenizer
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    text = "naïve 日本  —\t🙂 1,234\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
