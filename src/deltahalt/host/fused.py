"""One kernel each for what a host computes token by token in several: norms, rotary embedding, gated activation.

Results equal the host's up to rounding, as fewer intermediate values are rounded. With autograd the host's own run.
"""

import sys
from collections.abc import Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules.module import _has_any_global_hook

from deltahalt.host.blocks import Answer, Place, forward_of
from deltahalt.host.families.base import Family, Module

DEVICE = "cuda"  # the kind of device that liger-kernel runs on
ROTATE = "apply_rotary_pos_emb"  # the host's function of queries, keys, cos and sin


@cache
def liger() -> Any:
    """The kernels of the package liger-kernel, which run on a GPU; None without the package."""
    try:
        return import_module("liger_kernel.ops")  # an extra
    except ImportError:
        return None


def fused_parts(family: Family, layers: Iterable[Module]) -> dict[Place, Answer]:
    """What runs in place of parts of the layers; nothing if they are compiled."""
    layers = list(layers)
    if any(module._compiled_call_impl is not None for layer in layers for module in layer.modules()):
        return {}
    places: dict[Place, Answer] = {}
    for layer in layers:
        places |= {forward_of(norm): partial(_rms_norm, norm) for norm in family.rms_norms(layer)}
        if family.is_swiglu(layer):
            places[forward_of(layer.mlp)] = partial(_swiglu, layer.mlp)
    attentions = [layer.self_attn for layer in layers]
    code = sys.modules[type(attentions[0]).__module__]
    # The rotation is done in place, so a hook that has kept queries or keys would see them change.
    parts = (part for attention in attentions for child in attention.children() for part in child.modules())
    hooked = any(part._forward_hooks for part in parts)
    if hasattr(code, ROTATE) and not hooked and not _has_any_global_hook():
        places[code, ROTATE] = _rotate
    return places


def _rms_norm(norm: Module, _: Any, original: Any, hidden: torch.Tensor) -> Any:
    weight = norm.weight
    plain = type(weight) is torch.nn.Parameter and weight.dtype == hidden.dtype and weight.device == hidden.device
    if torch.is_grad_enabled() or not plain:
        return original(hidden)
    return F.rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)


def _swiglu(ffn: Module, _: Any, original: Any, hidden: torch.Tensor) -> Any:
    if torch.is_grad_enabled() or hidden.device.type != DEVICE or liger() is None:
        return original(hidden)
    gate, up = ffn.gate_proj(hidden), ffn.up_proj(hidden)
    with torch.cuda.device_of(gate):  # liger-kernel runs on the current device
        active = liger().LigerSiLUMulFunction.apply(gate, up)
    return ffn.down_proj(active)


def _rotate(
    _: Any, original: Any, queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **other: Any
) -> Any:
    """queries, keys: [B, heads, n, d]. cos, sin: [1 or B, n, d]."""
    fits = cos.ndim == 3 and cos.shape[-1] == queries.shape[-1] and not other
    if torch.is_grad_enabled() or queries.device.type != DEVICE or not fits or liger() is None:
        return original(queries, keys, cos, sin, **other)
    with torch.cuda.device_of(queries):
        return liger().LigerRopeFunction.apply(queries, keys, cos, sin)
