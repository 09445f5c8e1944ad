"""Tensor parallelism of the host: each rank holds some of a layer's heads, and policies see those of all ranks."""

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from deltahalt.errors import UnsupportedError
from deltahalt.host.families.base import Module


def is_spread(layer: Module, width: int) -> bool:
    """Whether this rank holds some of the layer's heads only. width: dimensions of all heads together."""
    weight = layer.self_attn.o_proj.weight
    return isinstance(weight, DTensor) or weight.shape[-1] < width


def of_all_ranks(heads: torch.Tensor, layer: Module, count: int) -> torch.Tensor:
    """Queries or keys [h, n, d] of a layer's heads on this rank, and on all others: [count, n, d].

    count: the number of heads in the whole model; where this rank has all of them, they are returned as they are. All
    ranks get the same numbers, so policies choose the same tokens on each. Raises UnsupportedError for heads that are
    spread in another way.
    """
    if len(heads) == count:
        return heads
    weight = layer.self_attn.o_proj.weight  # older versions keep plain tensors, spread over all processes
    group = weight.device_mesh.get_group() if isinstance(weight, DTensor) and weight.device_mesh.ndim == 1 else None
    if not dist.is_initialized() or len(heads) * dist.get_world_size(group) != count:
        raise UnsupportedError(
            f"layer weights hold {len(heads)} of {count} heads, and are not spread by tensor parallelism of "
            "transformers: load the model with tp_plan='auto', or choose a policy that reads states only, such as "
            "both-ends or dash"
        )
    parts = [torch.empty_like(heads) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, heads.contiguous(), group=group)
    return torch.cat(parts)
