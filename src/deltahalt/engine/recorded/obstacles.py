"""Whether generated tokens can run as a recorded step: each reason against it, and what to do about it."""

from collections.abc import Iterator
from typing import Any

import torch
from packaging.version import Version
from transformers.cache_utils import DynamicLayer

from deltahalt.engine.cache import holds_all
from deltahalt.engine.call import DecoderCall
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.host.ranks import is_spread

DEVICE = "cuda"  # the kind of device that can record
OLDEST_TORCH = "2.8"  # the first with matrix products of bfloat16 that are summed up in float32


def obstacle_in_model(host: HostDecoder) -> str | None:
    """Why no generated token of this model can be recorded; None if they can."""
    return next(_in_model(host), None)


def obstacle_in_call(host: HostDecoder, call: DecoderCall) -> str | None:
    """Why the generated tokens of this call, which has a cache, cannot be recorded; None if they can."""
    return next(_in_call(host, call), None)


def _in_model(host: HostDecoder) -> Iterator[str]:
    device = next(host.module.parameters()).device
    if device.type != DEVICE:
        yield f"the model is on {device.type}: move it to a CUDA device"
    if Version(torch.__version__) < Version(OLDEST_TORCH):
        yield f"PyTorch is older than {OLDEST_TORCH}: install a newer one"
    if host.attention != "sdpa":
        yield f'attention is {host.attention}: load the model with attn_implementation="sdpa"'
    if is_spread(host.layers[0], host.shape.heads * host.shape.head_dim):
        yield "layers are spread over several processes by tensor parallelism: load the model on one GPU"
    if any(host.windows):
        yield "the model has layers with a sliding window: choose another"


def _in_call(host: HostDecoder, call: DecoderCall) -> Iterator[str]:
    yield from _in_model(host)
    if torch.is_grad_enabled():
        yield "autograd cannot follow a recorded step: call the model in torch.no_grad()"
    if host.module.training:
        yield "the model is in training mode: call model.eval()"
    if torch.is_autocast_enabled(DEVICE):
        yield "autocast is on: load the model in the dtype that it should run in"
    if call.layout.blocks is not None or any(value is not None for value in call.own.values()):
        yield "the call has features of images: give tokens of text after the prompt"
    assert call.cache is not None
    layers: list[Any] = call.cache.layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        yield "the cache has layers of another kind: pass a plain DynamicCache"
    if not holds_all(call.cache, call.masks.past):
        yield "layers hold fewer tokens than they were given, as after a KV press: leave the press out"
