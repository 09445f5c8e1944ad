"""Looking ahead: the last tokens run on through deeper layers, over states that stay as they are."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import DynamicCache

from deltahalt import UnsupportedError, WindowAttention, halting
from deltahalt.host.compat import CACHE
from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from helpers.tiny import VARIANTS, VOCAB, tiny

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


def states_after(model: Any, view: LayerView, window: int) -> dict[int, torch.Tensor]:
    """By deeper layer, the states [n, D] that enter it: the host's own layers, the others frozen after every one."""
    decoder = model.model
    now = view.hidden_in + view.update if view.hidden_out is None else view.hidden_out
    asking = now[-window:]
    if view.hidden_out is None:
        layer = decoder.layers[view.layer]
        asking = asking + layer.mlp(layer.post_attention_layernorm(asking))
    rotary = decoder.rotary_emb(now[None], torch.arange(len(now))[None])
    entering = {}
    for index in range(view.layer + 1, len(decoder.layers)):
        entering[index] = torch.cat([now[:-window], asking])
        out = decoder.layers[index](entering[index][None], position_embeddings=rotary, attention_mask=None)
        asking = out[0, -window:]
    return entering


def projected(model: Any, index: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of states [n, D] after RoPE, written out."""
    attention = model.model.layers[index].self_attn
    normed, size = model.model.layers[index].input_layernorm(states), attention.head_dim
    cos, sin = model.model.rotary_emb(states[None], torch.arange(len(states))[None])

    def rotated(part: torch.Tensor) -> torch.Tensor:
        heads = part.view(len(states), -1, size).transpose(0, 1)
        half = torch.cat([-heads[..., size // 2 :], heads[..., : size // 2]], dim=-1)
        return heads * cos + half * sin

    return rotated(attention.q_proj(normed)), rotated(attention.k_proj(normed))


@pytest.mark.parametrize("window", [1, LAST, 40])
@pytest.mark.parametrize("boundary", ["block", "attention"])
def test_the_window_runs_on_through_the_host_s_layers_over_frozen_states(boundary: str, window: int) -> None:
    model = tiny("llama")
    view = spied(model, boundary=boundary)
    with torch.no_grad():
        deeper = list(view.lookahead(window))
        entering = states_after(model, view, window)
        assert [found.layer for found in deeper] == list(entering)
        for found in deeper:
            queries, keys = projected(model, found.layer, entering[found.layer])
            assert torch.allclose(found.keys(), keys, atol=1e-5)
            assert torch.allclose(found.queries(window), queries[:, -window:], atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_window_of_the_whole_prompt_sees_what_the_model_computes(name: str) -> None:
    model = tiny(name)
    view = spied(model)
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, **{CACHE: past})
        for deeper in view.lookahead(40):
            held = past.layers[deeper.layer].keys[0]  # a sliding layer has let go of older ones
            assert torch.allclose(deeper.keys()[:, -held.shape[1] :], held, atol=1e-5)


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
    assert not all(deeper.sees_all for deeper in view.lookahead(LAST))


def test_a_layer_whose_weights_are_elsewhere_is_refused() -> None:
    model = tiny("llama")
    view = spied(model)
    model.model.layers[4].to("meta")
    with pytest.raises(UnsupportedError, match="ahead=0"), torch.no_grad():
        list(view.lookahead(LAST))
