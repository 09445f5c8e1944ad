"""Late interaction: how well each token's surroundings answer to each of the last tokens, by their states alone."""

import torch
import torch.nn.functional as F

from deltahalt.policy import LayerView

AROUND = 129  # tokens around a match that it speaks for, itself included
COMPARED = 4096  # states that are compared at once


def late_interaction(view: LayerView, among: torch.Tensor, window: int, kernel: int) -> torch.Tensor:
    """How much better than elsewhere the last `window` tokens find their like around each token: [n] float32.

    ColBERT's MaxSim (arXiv 2004.12832) with the host's own hidden states: each asking token looks for the most similar
    state, by cosine after the mean state is taken away, within `kernel` tokens around; what is more than its average
    over the prompt counts, squared, so that a rare match outweighs many common ones; the sum over askers is the score.

    among: [n] bool, which tokens may halt; others score zero, but a match among them speaks for its surroundings, too,
    save for those who ask. kernel: odd.
    """
    states = view.hidden_in if view.hidden_out is None else view.hidden_out  # as they are where tokens halt
    mean = states.mean(dim=0, dtype=torch.float32)
    asking = F.normalize(states[-window:].float() - mean, dim=-1)
    pieces = states.split(COMPARED)
    similar = torch.cat([asking @ F.normalize(piece.float() - mean, dim=-1).mT for piece in pieces], dim=1)  # [w, n]
    best = F.max_pool1d(similar[None, :, :-window], kernel, stride=1, padding=kernel // 2)[0]
    best = F.pad(best, (0, window))
    usual = (best * among).sum(dim=1, keepdim=True) / among.sum()
    return (best - usual).clamp(min=0).square().sum(dim=0).masked_fill(~among, 0)
