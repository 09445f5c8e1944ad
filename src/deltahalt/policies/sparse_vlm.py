"""SparseVLM: visual tokens that get little attention of the relevant text tokens halt, in three stages."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.attention_scores import attention_from
from deltahalt.policies.base import Policy, Scope
from deltahalt.policies.cascade import Cascade
from deltahalt.policies.layer_view import LayerView

STEP = 256  # visual tokens that are compared with all text tokens at once


@dataclass(frozen=True, kw_only=True)
class TextRaters(Policy):
    """Keep the visual tokens that the text raters attend to most in the start layer, averaged over heads and raters.

    Raters are the text tokens whose relevance is at least the average. The relevance of text token t is the mean over
    visual tokens v of softmax_t(v . t), on input embeddings. As in the authors' code, all of the prompt's visual tokens
    take part in it, halted ones included.

    Attributes:
        scope: Eligible tokens: "visual", "image" or "video".

    Raises:
        PolicyError: For an option out of range, or a scope with text.

    Source:
        One stage of SparseVLM (arXiv 2410.04417).

    Example:
        >>> import torch
        >>> from deltahalt.kinds import IMAGE, TEXT
        >>> kinds = torch.tensor([TEXT] * 64 + [IMAGE] * 576 + [TEXT] * 32)
        >>> policy = TextRaters(start=2, pruning_ratio=0.5)
        >>> format_policy(policy)
        'text-raters:start=2,pruning_ratio=0.5'
        >>> policy.kept(len(kinds), kinds)
        288
    """

    name: ClassVar[str] = "text-raters"
    summary: ClassVar[str] = "visual tokens that relevant words attend to stay active"
    source: ClassVar[str] = "one stage of SparseVLM (arXiv 2410.04417)"

    scope: Scope = "visual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if TEXT in SCOPES[self.scope]:
            raise PolicyError(
                f'text-raters chooses among visual tokens, but scope="{self.scope}" has text: use scope="visual", '
                '"image" or "video"'
            )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"queries", "keys", "embeddings"})

    def score(self, view: LayerView) -> torch.Tensor:
        rating = _raters(view)[view.positions].nonzero().squeeze(1)
        if len(rating) == 0:  # all raters have halted; the last token of the prompt never does
            rating = torch.tensor([len(view.positions) - 1], device=view.positions.device)
        return attention_from(view, rating).mean(dim=0)


def _raters(view: LayerView) -> torch.Tensor:
    """Which tokens of the prompt are raters: [prompt] bool."""
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
    """Keep the visual tokens that the text raters attend to most, in three stages of `TextRaters`.

    The defaults are the paper's setting for 192 tokens on average: in layers 2, 6 and 15 of 32, of 576 visual tokens
    300, 200 and 110 stay. Halted tokens are not recycled into merged ones, and all tokens keep their positions, as in
    version 2.0 of the method.

    Attributes:
        start: Layer of the first stage: an index (int), or a fraction of the layers (float).
        pruning_ratio: Share of the visual tokens that halts in the first stage, in [0, 1].
        scope: Eligible tokens: "visual", "image" or "video".

    Raises:
        PolicyError: For an option out of range, a scope with text, or a ratio lower than that of an earlier stage.

    Source:
        SparseVLM (arXiv 2410.04417), without recycling.

    Example:
        >>> import torch
        >>> from deltahalt.kinds import IMAGE, TEXT
        >>> kinds = torch.tensor([TEXT] * 64 + [IMAGE] * 576 + [TEXT] * 32)
        >>> policy = SparseVLM(start=2)
        >>> format_policy(policy)
        'sparsevlm:start=2'
        >>> [stage.kept(len(kinds), kinds) for stage in policy.stages]
        [300, 200, 110]
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
