"""SparseVLM: visual tokens that the words about them attend to, at three layers in a row."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.attention_scores import attention_from
from deltahalt.policies.base import LayerView, Policy, Scope
from deltahalt.policies.cascade import Cascade

STEP = 256  # visual tokens held against all text tokens at once


@dataclass(frozen=True, kw_only=True)
class TextRaters(Policy):
    """Keep the visual tokens that the raters attend to most at layer l_s, averaged over heads and raters.

    Raters are the text tokens to which visual tokens, in their input embeddings, are more like than to the average
    one: mean over v of softmax over t of v.t. As the original has it, all of the prompt's visual tokens choose them.
    """

    name: ClassVar[str] = "text-raters"
    summary: ClassVar[str] = "visual tokens that relevant words attend to stay active"
    source: ClassVar[str] = "one stage of SparseVLM (arXiv 2410.04417)"

    scope: Scope = "visual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if TEXT in SCOPES[self.scope]:
            raise PolicyError(f'raters rate visual tokens, not scope="{self.scope}": use scope="visual"')

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"queries", "keys", "embeddings"})

    def score(self, view: LayerView) -> torch.Tensor:
        rating = _raters(view)[view.positions].nonzero().squeeze(1)
        if len(rating) == 0:  # all have halted: the last token of a prompt never does
            rating = torch.tensor([len(view.positions) - 1], device=view.positions.device)
        return attention_from(view, rating).mean(dim=0)


def _raters(view: LayerView) -> torch.Tensor:
    """Which tokens of the prompt rate, [prompt] bool."""
    assert view.kinds is not None  # a prompt without images is not scored
    assert view.embeddings is not None
    text = (view.kinds == TEXT).nonzero().squeeze(1)
    words, seen = view.embeddings[text].float(), view.embeddings[view.kinds > TEXT]
    likeness = sum((part.float() @ words.T).softmax(dim=-1).sum(dim=0) for part in seen.split(STEP))
    raters = torch.zeros_like(view.kinds, dtype=torch.bool)
    raters[text] = likeness >= likeness.mean()
    return raters


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Cascade):
    """Text raters at layers 2, 6 and 15 of 32; of 576 visual tokens 300, 200 and 110 stay (its setting for 192).

    Halted tokens are not recycled into merged ones, and all tokens keep their positions, as in the method's version
    2.0. The attention is that of the raters alone, never of all tokens to all.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "visual tokens that relevant words attend to stay active, in three stages"
    source: ClassVar[str] = "SparseVLM (arXiv 2410.04417), without recycling"
    rule = TextRaters

    start: float | int = 0.07
    pruning_ratio: float = 0.479
    second_start: float | int = 0.19
    second_ratio: float = 0.653
    third_start: float | int = 0.47
    third_ratio: float = 0.809
    scope: Scope = "visual"
