"""What a policy may read of one sequence in one layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from deltahalt.kinds import TEXT


@dataclass(frozen=True)
class LayerView:
    """One sequence in one layer, without batch or padding: all that a policy may read.

    n is the number of active tokens, which come in ascending position; D is the hidden size, d the head size.

    Attributes:
        layer: Index of the layer, from 0.
        prompt: Number of tokens in the whole prompt, halted ones included.
        positions: [n] Position of each active token in the prompt.
        hidden_in: [n, D] Input of the layer.
        update: [n, D] Output of the attention module, before any norm or residual addition: U of DASH, Eq. 1.
        hidden_out: [n, D] Output of the layer. None at the boundary "attention", where its FFN has not run yet.
        queries: Function of w that returns the queries of the last w active tokens, after RoPE: [heads, w, d].
        keys: Function that returns the keys of the active tokens, after RoPE: [kv_heads, n, d].
        scaling: Factor on the product of a query and a key.
        window: Number of positions that a query attends to, its own included. None: all positions up to its own.
        lookahead: Function of w that yields a view of each deeper layer in turn. There only the last w active tokens
            have run through the layers between; the states of all others are those after this layer.
        kinds: [prompt] Kind of each prompt token, see `deltahalt.kinds`. None: all tokens are text.
        embeddings: [prompt, D] Input of the first layer. None where `kinds` is None.
        question: [q] Positions of the question's tokens in the prompt, ascending. None: the question is not known.
        final_norm: The decoder's last norm, which comes before its logits.

    Example:
        >>> states = torch.eye(4)
        >>> view = LayerView(
        ...     layer=3, prompt=4, positions=torch.arange(4), scaling=1.0,
        ...     hidden_in=states, update=torch.tensor([1.0, 4.0, 2.0, 3.0]).diag(), hidden_out=states,
        ...     queries=lambda w: states[None, -w:], keys=lambda: states[None],
        ... )
        >>> Dash().score(view)
        tensor([1., 4., 2., 3.])
    """

    layer: int
    prompt: int
    positions: torch.Tensor
    hidden_in: torch.Tensor
    update: torch.Tensor
    hidden_out: torch.Tensor | None
    queries: Callable[[int], torch.Tensor]
    keys: Callable[[], torch.Tensor]
    scaling: float
    window: int | None = None
    lookahead: Callable[[int], Iterator["LayerView"]] = lambda _: iter(())
    kinds: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    question: torch.Tensor | None = None
    final_norm: Callable[[torch.Tensor], torch.Tensor] = lambda states: states

    @property
    def visual(self) -> torch.Tensor | None:
        """Which of the n tokens belong to images or videos: [n] bool. None for a prompt of text."""
        return None if self.kinds is None else self.kinds[self.positions] > TEXT

    @property
    def active_question(self) -> torch.Tensor | None:
        """Index [q] of those of the n tokens that belong to the question, ascending; None if it is not known."""
        if self.question is None or len(self.positions) == self.prompt:
            return self.question
        return torch.isin(self.positions, self.question).nonzero().squeeze(1)

    @property
    def sees_all(self) -> bool:
        """Whether the layer attends to the whole prompt."""
        return self.window is None or self.prompt <= self.window
