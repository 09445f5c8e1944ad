"""Loading from a folder and from the hub, and what a user is told when a model cannot be loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, T5Config

from deltahalt.errors import InputError, ModelError
from deltahalt.loading.models import LoadedModel, load, load_config

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
OWN_CONFIG = "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
OWN_MODEL = """from transformers import LlamaForCausalLM

from .own_config import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without network, whose hub cache holds one model: someone/tiny."""
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123"
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def altered(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "altered"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def test_a_folder_gives_the_stock_model_and_a_tokenizer_ready_for_batches(tiny_folder: Path) -> None:
    loaded = load(tiny_folder, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert type(loaded.model) is type(stock)
    assert torch.equal(logits(loaded.model), logits(stock))
    assert not loaded.model.training
    assert loaded.name == tiny_folder.name
    batch = loaded.tokenizer(["the", "a longer one"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [0] * 10 + [1, 1]  # "th", "e"
    assert batch["input_ids"][0, 0] == loaded.tokenizer.eos_token_id


def test_a_path_may_begin_at_home(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert load(f"~/{tiny_folder.name}").name == tiny_folder.name


@pytest.mark.parametrize(
    ("asked", "given"),
    [("auto", torch.bfloat16), ("float32", torch.float32), (torch.float16, torch.float16)],
)
def test_dtype(tiny_folder: Path, asked: str | torch.dtype, given: torch.dtype) -> None:
    assert load(tiny_folder, dtype=asked).model.dtype is given


@pytest.mark.usefixtures("hub")
def test_a_configuration_needs_no_weights(altered: Path) -> None:
    (altered / "model.safetensors").unlink()
    assert load_config(altered).vocab_size == load_config("someone/tiny").vocab_size == 260
    with pytest.raises(ModelError, match="someone/else cannot be loaded"):
        load_config("someone/else")


def test_attention_and_placement_are_passed_on(tiny_folder: Path) -> None:
    model = load(tiny_folder, attention="eager", device_map={"": "cpu"}).model
    assert model.config._attn_implementation == "eager"
    assert model.device.type == "cpu"


@pytest.mark.usefixtures("hub")
def test_a_hub_id(tiny_folder: Path) -> None:
    loaded = load("someone/tiny", device="cpu")
    assert loaded.name == "someone/tiny"
    assert torch.equal(logits(loaded.model), logits(load(tiny_folder, device="cpu").model))


@pytest.mark.usefixtures("hub")
def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(ModelError, match=r"someone/else.*give a folder or a \.gguf file") as caught:
        load("someone/else")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "model.gguf", "a/m.GGUF"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match=f"no file or folder {name}"):
        load(name)


def test_a_file_that_is_no_model(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"give a \.gguf file, or the folder"):
        load(tiny_folder / "config.json")


def test_a_folder_without_config(altered: Path) -> None:
    (altered / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json: give a model's folder"):
        load(altered)
    (altered / "weights.gguf").touch()
    with pytest.raises(ModelError, match=r"no config\.json: give its file weights\.gguf"):
        load(altered)


def test_a_folder_without_tokenizer(altered: Path) -> None:
    (altered / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer: save the model's tokenizer"):
        load(altered)


def test_a_folder_without_weights(altered: Path) -> None:
    (altered / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be loaded: .*model\.safetensors"):
        load(altered)


def test_a_folder_that_lacks_one_weight(altered: Path) -> None:
    weights = load_file(altered / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, altered / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load(altered)


def test_damaged_weights(altered: Path) -> None:
    (altered / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(altered)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("config", [BertConfig(), T5Config()], ids=["encoder", "encoder-decoder"])
def test_a_model_without_causal_decoder(altered: Path, config: BertConfig | T5Config) -> None:
    config.save_pretrained(altered)
    with pytest.raises(ModelError, match=f"{config.model_type}.*decoder-only"):
        load(altered)


def test_remote_code_runs_only_when_allowed(altered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((altered / "config.json").read_text())
    classes = {"AutoConfig": "own_config.OwnConfig", "AutoModelForCausalLM": "own_model.OwnForCausalLM"}
    (altered / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (altered / "own_config.py").write_text(OWN_CONFIG)
    (altered / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(altered / "modules"))
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load(altered)
    assert type(load(altered, trust_remote_code=True).model).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize("dtype", ["float23", "int8", torch.int8])
def test_an_unknown_dtype(tiny_folder: Path, dtype: str | torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"unknown dtype .*: give one of auto, bfloat16"):
        load(tiny_folder, dtype=dtype)


def test_an_unknown_attention(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"nonsense.*sdpa"):
        load(tiny_folder, attention="nonsense")


def test_two_devices_at_once(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="leave one of them out"):
        load(tiny_folder, device="cpu", device_map="auto")


@pytest.mark.real_weights
def test_the_bundled_model_answers(smollm2: LoadedModel) -> None:
    model, tokenizer, name = smollm2
    assert (name, model.dtype, model.config.tie_word_embeddings) == ("smollm2-135m", torch.float32, True)
    assert model.config.rope_parameters["rope_theta"] == 100_000
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = output[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
