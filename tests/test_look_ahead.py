"""What a view shows of deeper layers is what their own modules make of the states as they are."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

from deltahalt import UnsupportedError, WindowAttention, halting
from deltahalt.policy import LayerView, Policy
from tiny import VOCAB, tiny

IDS = torch.randint(1, VOCAB, (1, 40), generator=torch.Generator().manual_seed(0))
LAST = 5


@dataclass(frozen=True, kw_only=True)
class Spy(Policy):
    """Keeps the first tokens, and what it was shown."""

    name: ClassVar[str] = "spy"
    seen: list[LayerView] = field(default_factory=list)

    def score(self, view: LayerView) -> torch.Tensor:
        self.seen.append(view)
        return -view.positions.float()


def spied(model: Any, ids: torch.Tensor = IDS, **options: Any) -> LayerView:
    spy = Spy(start=2, keep_first=2, keep_last=2, **options)
    with halting(model, spy), torch.no_grad():
        model(ids, logits_to_keep=1)
    return spy.seen[0]


def heads(module: Any, states: torch.Tensor, size: int) -> torch.Tensor:
    return module(states).view(len(states), -1, size).transpose(0, 1)


@pytest.mark.parametrize("boundary", ["block", "attention"])
def test_deeper_queries_and_keys_are_projections_of_the_present_states(boundary: str) -> None:
    model = tiny("llama")
    view = spied(model, boundary=boundary)
    now = view.hidden_out if boundary == "block" else view.hidden_in + view.update
    deeper = view.deeper(2)
    assert deeper is not None
    assert deeper.layer == 4
    layer = model.model.layers[4]
    size = layer.self_attn.head_dim
    states = layer.input_layernorm(now)
    cos, sin = model.model.rotary_emb(states[None], torch.arange(40)[None])

    def rotated(part: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-part[..., size // 2 :], part[..., : size // 2]], dim=-1)
        return part * cos + half * sin

    with torch.no_grad():
        assert torch.allclose(deeper.keys(), rotated(heads(layer.self_attn.k_proj, states, size)), atol=1e-5)
        asked = rotated(heads(layer.self_attn.q_proj, states, size))
        assert torch.allclose(deeper.queries(LAST), asked[:, -LAST:], atol=1e-5)


def test_there_is_nothing_deeper_than_the_last_layer() -> None:
    view = spied(tiny("llama"))
    assert view.deeper(3) is not None
    assert view.deeper(4) is None


def test_each_row_of_a_padded_batch_is_scored_as_if_alone() -> None:
    model = tiny("qwen2")
    policy = WindowAttention(start=2, ahead=3, window=4, keep_first=2, keep_last=4, pruning_ratio=0.5)
    batch = torch.cat([IDS, torch.cat([torch.zeros(1, 10, dtype=torch.long), IDS[:, :30]], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :10] = 0
    with halting(model, policy) as halted, torch.no_grad():
        model(batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1)
        together = [kept.tolist() for kept in halted.report.kept]
        for row, ids in enumerate((IDS, IDS[:, :30])):
            model(ids, logits_to_keep=1)
            assert halted.report.kept[0].tolist() == together[row]


def test_layers_that_see_part_of_the_prompt_are_left_out() -> None:
    model = tiny("gemma3")
    view = spied(model, torch.cat([IDS, IDS], dim=1))
    seen = [deeper.sees_all for steps in range(1, 4) if (deeper := view.deeper(steps)) is not None]
    assert not all(seen)


def test_a_layer_whose_weights_are_elsewhere_is_refused() -> None:
    model = tiny("llama")
    view = spied(model)
    model.model.layers[4].to("meta")
    deeper = view.deeper(2)
    assert deeper is not None
    with pytest.raises(UnsupportedError, match="ahead=0"):
        deeper.keys()
