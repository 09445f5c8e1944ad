"""Where the transformers versions that deltahalt runs on differ."""

from typing import Any

import transformers


def unpacked_gguf() -> dict[str, Any]:
    """What makes `from_pretrained` turn the weights of a GGUF file into plain tensors."""
    # Newer versions otherwise use packed layers, and another attention, wherever they find kernels for them.
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}
