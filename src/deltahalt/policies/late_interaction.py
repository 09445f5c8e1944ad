"""Late interaction: how similar the states around each token are to those of the query tokens."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from deltahalt.policies.layer_view import LayerView

AROUND = 129  # default width, in tokens, of the span in which a match counts for a token
COMPARED = 4096  # states that are compared with the query tokens at once
POWER = 2  # default exponent on how far a match exceeds the average


def late_interaction(
    view: LayerView,
    among: torch.Tensor,
    query: torch.Tensor,
    kernel: int,
    *,
    power: int = POWER,
    standardize: bool = False,
) -> torch.Tensor:
    """Score of each token by the similarity of the states around it to those of the query tokens: [n] float32.

    This is ColBERT's MaxSim (arXiv 2004.12832) on the host's own hidden states. For each query token, the match of a
    token is the highest cosine similarity to a state within `kernel` tokens around it, after the mean state has been
    subtracted. A match counts by how far it exceeds the average over the prompt, to the `power`, so that a rare match
    outweighs many common ones. The score is the sum over query tokens.

    among: [n] bool, the tokens that may halt. All others score zero, but a similar state among them counts for the
    tokens around it, unless it is a query token. query: [q] index of the query tokens. kernel: odd. standardize: divide
    every dimension by its standard deviation over the prompt, so that a few large dimensions do not dominate.
    """
    states = states_of(view)
    directions = directions_in(states, standardize=standardize)
    wanted = directions(states[query])
    similar = torch.cat([wanted @ directions(piece).mT for piece in states.split(COMPARED)], dim=1)  # [q, n]
    similar = similar.index_fill(1, query, -1)
    best = F.max_pool1d(similar[None], kernel, stride=1, padding=kernel // 2)[0]
    usual = (best * among).sum(dim=1, keepdim=True) / among.sum()
    return (best - usual).clamp(min=0).pow(power).sum(dim=0).masked_fill(~among, 0)


def states_of(view: LayerView) -> torch.Tensor:
    """The states [n, D] of the active tokens at the point where tokens halt."""
    return view.hidden_in if view.hidden_out is None else view.hidden_out


def directions_in(states: torch.Tensor, *, standardize: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from rows of `states` [n, D] to unit vectors [m, D] float32, whose products are their similarities.

    It subtracts the mean state. standardize: it also divides every dimension by its standard deviation.
    """
    mean = states.mean(dim=0, dtype=torch.float32)
    spread = _deviation(states.split(COMPARED), mean) if standardize else torch.ones_like(mean)
    return lambda rows: F.normalize((rows.float() - mean) / spread, dim=-1)


def _deviation(pieces: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """Standard deviation [D] of every dimension around its `mean` [D]; infinity in place of zero."""
    squares = torch.stack([(piece.float() - mean).square().sum(dim=0) for piece in pieces]).sum(dim=0)
    deviation = (squares / sum(len(piece) for piece in pieces)).sqrt()
    return deviation.masked_fill(deviation == 0, torch.inf)
