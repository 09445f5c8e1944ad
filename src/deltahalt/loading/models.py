"""Load a model and its tokenizer with transformers: from the hub, a folder or a GGUF file, or the bundled model."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deltahalt.errors import InputError, ModelError
from deltahalt.host.compat import unpacked_gguf
from deltahalt.loading import bundled
from deltahalt.loading.bars import loading_bars
from deltahalt.loading.gguf_tokenizer import load_gguf_tokenizer
from deltahalt.loading.hub import require_hub

DTYPES = ("bfloat16", "float16", "float32")
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")


class LoadedModel(NamedTuple):
    """A causal language model with its tokenizer, as `load` returns them.

    Attributes:
        model: The Hugging Face model, on its device.
        tokenizer: Its tokenizer, which pads on the left, as batches of prompts need.
        name: The model's hub id, or the name of its folder or file.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


class LoadedVisionModel(NamedTuple):
    """A vision-language model with its tokenizer and image processor, as `load_vision` returns them.

    Attributes:
        model: The Hugging Face model, on its device.
        tokenizer: Its tokenizer.
        image_processor: Its image processor, which turns pictures into pixel values.
        name: The model's hub id, or the name of its folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    name: str


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        model: A hub id, a local folder, a .gguf file, or "smollm2-135m", which is downloaded on first use (94 MB).
        dtype: "auto", "bfloat16", "float16" or "float32", or a torch dtype. "auto" is the dtype of the weights; for a
            GGUF file it is float32 on the CPU and bfloat16 on other devices.
        device: The device, such as "cuda:0" or "cpu". Default: the GPU if there is one, else the CPU.
        device_map: A device map of transformers, such as "auto", in place of `device`.
        attention: The `attn_implementation` of transformers: "sdpa", "eager" or a FlashAttention.
        trust_remote_code: Whether to run code that the model's repository contains.

    Returns:
        The model on its device, its tokenizer and its name.

    Raises:
        ModelError: If the model cannot be found, verified or loaded, or `dtype` is unknown.
        InputError: If both `device` and `device_map` are given, or this machine does not have the device.

    Example:
        >>> loaded = load("smollm2-135m", device="cpu")  # doctest: +SKIP
        >>> loaded.name, loaded.model.dtype  # doctest: +SKIP
        ('smollm2-135m', torch.float32)
    """
    if device is not None and device_map is not None:
        raise InputError(f"device={device!r} and device_map={device_map!r} are both given: leave one of them out")
    name, device = os.fspath(model), find_device(device)
    source, gguf = _locate(name)
    weights = {
        "dtype": find_dtype(dtype, "auto" if gguf is None else "float32" if device.startswith("cpu") else "bfloat16"),
        "device_map": device_map or {"": device},
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
    }
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    config = load_config(name, trust_remote_code=trust_remote_code)
    require_causal(config, name)
    with _as_model_error(name, gguf), loading_bars(name):
        weights |= {} if gguf is None else {"gguf_file": gguf, **unpacked_gguf()}
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, config=config, output_loading_info=True, **weights)
    network = _complete(loaded, name)
    return LoadedModel(network, tokenizer, _short_name(name, source, gguf))


def load_tokenizer(model: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, set to pad on the left, without the weights. Arguments and errors are as in `load`."""
    name = os.fspath(model)
    source, gguf = _locate(name)
    tokenizer: PreTrainedTokenizerBase
    with _as_model_error(name, gguf):
        if gguf is None:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        else:
            tokenizer = load_gguf_tokenizer(Path(source, gguf))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_vision(
    model: str | os.PathLike[str], *, dtype: str | torch.dtype = "auto", device: str | None = None
) -> LoadedVisionModel:
    """Load a vision-language model with its tokenizer and image processor.

    Args:
        model: A hub id, or a local folder.
        dtype: As in `load`.
        device: As in `load`.

    Returns:
        The model on its device, its tokenizer, image processor and name.

    Raises:
        ModelError: If the model cannot be found or loaded, does not take images, or `dtype` is unknown.
        InputError: If this machine does not have the device.

    Example:
        >>> loaded = load_vision("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> loaded.model.config.model_type  # doctest: +SKIP
        'qwen2_vl'
    """
    name, device = os.fspath(model), find_device(device)
    source, gguf = _locate(name)
    config = load_config(name)
    require_vision(config, name)
    with _as_model_error(name, gguf), loading_bars(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
        weights = {"dtype": find_dtype(dtype, "auto"), "device_map": {"": device}}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, config=config, output_loading_info=True, **weights
        )
    return LoadedVisionModel(_complete(loaded, name), tokenizer, processor, _short_name(name, source, gguf))


def load_config(model: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model, without its weights. Arguments and errors are as in `load`."""
    name = os.fspath(model)
    source, gguf = _locate(name)
    file = Path(source, gguf or "config.json")
    state = file.stat() if file.is_file() else None
    with _as_model_error(name, gguf):
        config = _read_config(source, gguf, trust_remote_code, state and (state.st_mtime_ns, state.st_size))
        return copy.deepcopy(config)


@lru_cache(maxsize=4)
def _read_config(source: str, gguf: str | None, trust: bool, _state: Any) -> PreTrainedConfig:
    """Read the configuration, once per state of the file, since it takes seconds for a GGUF file."""
    return AutoConfig.from_pretrained(source, gguf_file=gguf, trust_remote_code=trust)


def find_dtype(dtype: str | torch.dtype, auto: str) -> str | torch.dtype:
    """Return the torch dtype of a name. "auto" gives the dtype named `auto`, or stays "auto". Raises ModelError."""
    name = auto if dtype == "auto" else str(dtype).removeprefix("torch.")
    if name not in (*DTYPES, "auto"):
        raise ModelError(f"unknown dtype {name}: give one of auto, {', '.join(DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def find_device(device: str | None) -> str:
    """Return the device's name; default: the GPU if there is one, else the CPU. Raises InputError if it is missing."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        known = torch.device(name).type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        known = False
    if not known:
        found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"this machine has no device {name!r}: give one of {', '.join(found)}")
    return name


def end_tokens(model: Any) -> set[int]:
    """Return the ids of the tokens that end the model's generation."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _locate(name: str) -> tuple[str, str | None]:
    """Return where transformers finds the model: a folder and a GGUF file in it, or a folder or hub id and None.

    Raises ModelError for a path without a model.
    """
    try:
        path = bundled.fetch() if name == bundled.NAME else Path(name).expanduser()
        is_file, is_folder, exists = path.is_file(), path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a null byte, or of an unknown home folder
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name[:80]!r} is not a valid model name ({reason}): check the path") from error
    is_gguf = path.suffix.lower() == ".gguf"
    if is_gguf and is_file:
        return str(path.parent), path.name
    if is_folder and name:
        _require_complete(path)
        return str(path), None
    if exists and name:
        raise ModelError(f"{name} is not a model: give a .gguf file, or the folder that holds config.json")
    if not name.strip() or is_gguf or name.startswith((".", "~")) or path.is_absolute() or len(path.parts) > 2:
        raise ModelError(
            f"there is no file or folder {name or repr(name)}: check the path, or give a hub id, OWNER/NAME"
        )
    require_hub(name)
    return name, None


def _complete(loaded: Any, name: str) -> PreTrainedModel:
    """Return the model from transformers' (model, loading info). Raises ModelError if the file lacks weights."""
    network, loading = loaded
    if loading["missing_keys"]:  # transformers has initialized them at random
        raise ModelError(f"{name} lacks weights, such as {min(loading['missing_keys'])}: download it again")
    return network


def _short_name(name: str, source: str, gguf: str | None) -> str:
    """Return a hub id unchanged, and the last part of the path of a folder or file."""
    local = gguf is not None or Path(source).is_dir()
    return Path(name).name.removesuffix(".gguf") if local else name


def _require_complete(folder: Path) -> None:
    """Raise ModelError if `folder` lacks a file that some versions of transformers would replace by defaults."""
    if not (folder / "config.json").is_file():
        hint = next((f"give its file {file.name}" for file in folder.glob("*.gguf")), "give a model's folder")
        raise ModelError(f"{folder} has no config.json: {hint}")
    if not any(True for pattern in VOCABULARIES for _ in folder.glob(pattern)):
        raise ModelError(f"{folder} has no tokenizer: save the model's tokenizer there with save_pretrained")


def require_vision(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for the configuration of a model that does not take images."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"{name} ({config.model_type}) is not a vision-language model: give one that takes images")


def require_causal(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for the configuration of a model that is not a causal, decoder-only one."""
    remote = getattr(config, "auto_map", None) or {}
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote
    # transformers would run an encoder as a decoder, for which it was not trained.
    if not causal or config.is_encoder_decoder or type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise ModelError(f"{name} ({config.model_type}) is not a causal language model: give a decoder-only one")


@contextmanager
def _as_model_error(name: str, gguf: str | None) -> Iterator[None]:
    """Convert any error of transformers and its file readers to a ModelError that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = _first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it comes with its own code: read it, then call load(..., trust_remote_code=True)"
        elif gguf is not None:
            reason = f"{_first_line(_root(error))}. If the file may be damaged, download it again"
        elif isinstance(error, OSError) and not Path(name).expanduser().exists():
            reason = f"{reason}. Check the name and the network, or give a folder or a .gguf file"
        raise ModelError(f"{name} cannot be loaded: {reason}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0].rstrip(".")


def _root(error: BaseException) -> BaseException:
    """Return the first error of a chain. While handling it, transformers may fail to import unrelated packages."""
    return _root(error.__context__) if error.__context__ else error
