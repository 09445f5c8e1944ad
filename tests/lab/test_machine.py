"""Rows say what they ran on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltahalt.engine.backends import WITHOUT_CUDNN
from deltahalt.lab.bench.machine import attention_name


def named(attention: str, device: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention), device=torch.device(device))


@pytest.mark.parametrize(("attention", "device"), [("sdpa", "cpu"), ("eager", "cuda"), ("flash_attention_2", "cuda")])
def test_cudnn_is_named_only_where_sdpa_could_prefer_it(attention: str, device: str) -> None:
    with WITHOUT_CUDNN:
        assert attention_name(named(attention, device)) == attention


def test_sdpa_on_a_gpu_tells_whether_it_prefers_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = named("sdpa", "cuda")
    monkeypatch.delenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", raising=False)
    assert attention_name(model) == "sdpa"
    with WITHOUT_CUDNN:
        assert attention_name(model) == "sdpa, cuDNN last"
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    assert attention_name(model) == "sdpa, cuDNN last"
