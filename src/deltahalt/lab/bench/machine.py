"""The hardware and software that a measurement ran on."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

import deltahalt
from deltahalt.host import flash_four, fused


def ran_on(model: Any) -> dict[str, Any]:
    """Return a row's fields on how a model ran: number format, attention implementation, machine and versions."""
    return {
        "dtype": number_format(model),
        "attention": attention_name(model),
        "machine": machine_name(model.device),
        "deltahalt": deltahalt.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def attention_name(model: Any) -> str:
    """Return transformers' name of the attention implementation; on a GPU, also which kernels halting uses.

    Those are FlashAttention 4 and liger-kernel where they are installed, and cuDNN's attention unless it comes last.
    """
    name: str = model.config._attn_implementation
    if model.device.type != "cuda":
        return name
    kernels = [] if fused.liger() is None else ["liger-kernel"]
    if name == "sdpa":
        cudnn = torch.backends.cuda.cudnn_sdp_enabled() and os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1"
        kernels += [] if flash_four.kernel() is None else ["FlashAttention 4"]
        kernels += [] if cudnn else ["cuDNN last"]
    return ", ".join([name, *sorted(kernels)])


def number_format(model: Any) -> str:
    """Return the name of a model's dtype, such as bfloat16."""
    return str(model.dtype).removeprefix("torch.")


def machine_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's name and the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
