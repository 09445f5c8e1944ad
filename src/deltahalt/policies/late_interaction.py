"""Late interaction: how well each token's surroundings answer to each of the last tokens, by their states alone."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from deltahalt.policies.base import LayerView

AROUND = 129  # tokens around a match that it speaks for, itself included
COMPARED = 4096  # states that are compared at once
POWER = 2  # of what a match is better than usual


def late_interaction(
    view: LayerView, among: torch.Tensor, window: int, kernel: int, *, power: int = POWER, standardize: bool = False
) -> torch.Tensor:
    """How much better than elsewhere the last `window` tokens find their like around each token: [n] float32.

    ColBERT's MaxSim (arXiv 2004.12832) with the host's own hidden states: each asking token looks for the most similar
    state, by cosine after the mean state is taken away, within `kernel` tokens around; what is more than its average
    over the prompt counts, to the `power`, so that a rare match outweighs many common ones; the sum over askers is the
    score.

    among: [n] bool, which tokens may halt; others score zero, but a match among them speaks for its surroundings, too,
    save for those who ask. kernel: odd. standardize: divide every dimension by its standard deviation over the prompt,
    so that the few large ones do not decide alone.
    """
    states = states_of(view)
    directions = directions_in(states, standardize=standardize)
    asking = directions(states[-window:])
    similar = torch.cat([asking @ directions(piece).mT for piece in states.split(COMPARED)], dim=1)  # [w, n]
    best = F.max_pool1d(similar[None, :, :-window], kernel, stride=1, padding=kernel // 2)[0]
    best = F.pad(best, (0, window))
    usual = (best * among).sum(dim=1, keepdim=True) / among.sum()
    return (best - usual).clamp(min=0).pow(power).sum(dim=0).masked_fill(~among, 0)


def states_of(view: LayerView) -> torch.Tensor:
    """The states [n, D] as they are where tokens halt."""
    return view.hidden_in if view.hidden_out is None else view.hidden_out


def directions_in(states: torch.Tensor, *, standardize: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns rows of `states` [n, D] into unit vectors [m, D] float32 whose products are their similarities.

    The mean state is taken away first. standardize: divide every dimension by its standard deviation, too.
    """
    mean = states.mean(dim=0, dtype=torch.float32)
    spread = _deviation(states.split(COMPARED), mean) if standardize else torch.ones_like(mean)
    return lambda rows: F.normalize((rows.float() - mean) / spread, dim=-1)


def _deviation(pieces: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """Standard deviation of every dimension around its `mean` [D], [D]; infinite where it is zero."""
    squares = torch.stack([(piece.float() - mean).square().sum(dim=0) for piece in pieces]).sum(dim=0)
    deviation = (squares / sum(len(piece) for piece in pieces)).sqrt()
    return deviation.masked_fill(deviation == 0, torch.inf)
