"""M-RoPE of the Qwen vision-language models: each token has a temporal, a vertical and a horizontal position."""

import torch

from deltahalt.host.families.base import Family, Module, Rotary


class MRope(Family):
    """A decoder with M-RoPE.

    Positions are [B, T] or [1, B, T], equal on all axes; [3, B, T] of time, height and width; or [4, B, T], with text
    positions first.
    """

    def rotary(self, decoder: Module, hidden: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Rotary]:
        planes = position_ids[None] if position_ids.ndim == 2 else position_ids[-3:]
        return {"": decoder.rotary_emb(hidden, planes.expand(3, -1, -1))}

    def packing(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        if position_ids.ndim == 2:
            return position_ids
        return position_ids[0] if len(position_ids) == 4 else None
