"""MaxSim: passages whose hidden states are similar to the question's stay active, as a retriever would find them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy
from deltahalt.policies.late_interaction import AROUND, POWER, late_interaction
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.options import require_at_least
from deltahalt.policies.query_tokens import check_window, last_tokens, query_count


@dataclass(frozen=True, kw_only=True)
class MaxSim(Policy):
    """Keep the tokens around which hidden states are most similar to those of the query tokens, the last `window`.

    Where the question is known (see `deltahalt.halting`), its tokens are the query tokens, and stay active.

    The policy reads hidden states only: no queries, keys or deeper layers. So a layer with a sliding window can decide.

    Attributes:
        window: Number of last tokens that are the query tokens, from 1 to keep_last. In a scope without text, it is
            limited to the tokens after the last one that may halt.
        kernel: Width of the span around a token, in tokens, in which a match counts for it; odd.
        power: Exponent on how far a match exceeds the average over the prompt, 1 or more. With a higher one, a rare
            match outweighs more common ones.
        standardize: Divide every dimension of the states by its standard deviation over the prompt first.

    Raises:
        PolicyError: For an option out of range.

    Source:
        Ours, after ColBERT's late interaction (arXiv 2004.12832).

    Example:
        >>> policy = MaxSim(start=2, pruning_ratio=0.5, window=16)
        >>> format_policy(policy)
        'max-sim:start=2,pruning_ratio=0.5,window=16'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "max-sim"
    summary: ClassVar[str] = "tokens around the states most similar to the last window's stay active"
    source: ClassVar[str] = "ours, after ColBERT's late interaction (arXiv 2004.12832)"
    reads_question: ClassVar[bool] = True

    window: int = 32
    kernel: int = AROUND
    power: int = POWER
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self)
        require_at_least(self, 1, "power")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in" if self.boundary == "attention" else "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        among, question = self.may_halt(view), view.active_question
        query = last_tokens(query_count(self.window, self, view), view) if question is None else question
        scores = late_interaction(view, among, query, self.kernel, power=self.power, standardize=self.standardize)
        return scores if question is None else scores.index_fill(0, question, torch.inf)
