"""FlashAttention 4: which calls it takes, and what they are given. On a CPU a plain reference stands in for it."""

from typing import Any

import pytest
import torch

from deltahalt import Dash, Dense, halting
from deltahalt.engine.backends import PLANLESS, backend
from deltahalt.host import flash_four
from deltahalt.lab.bench.machine import attention_name
from helpers.tiny import LAYERS, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)  # layers 0 and 1 run on all tokens
BFLOAT16: Any = {"dtype": torch.bfloat16}


class Reference:
    """As the package's function, in plain PyTorch; notes the numbers of queries and keys of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, softmax_scale: float | None, causal: bool
    ) -> tuple[torch.Tensor, None]:
        assert causal
        queries, keys, group = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
        self.calls.append((queries, keys))
        query, key, value = (part.transpose(1, 2).float() for part in (query, key, value))
        scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        scores = query @ key.repeat_interleave(group, dim=1).mT * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        return (weights @ value.repeat_interleave(group, dim=1)).transpose(1, 2).bfloat16(), None


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Reference:
    made = Reference()
    monkeypatch.setattr(flash_four, "kernel", lambda: made)
    monkeypatch.setattr(flash_four, "FEWEST_PAIRS", 0)
    return made


def logits(model: Any, policy: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> Any:
    with torch.no_grad(), halting(model, policy, **options):
        return model(ids, attention_mask=mask, logits_to_keep=1).logits


@pytest.mark.parametrize("pieces", [None, 5])
def test_all_layers_of_a_halted_prefill_but_the_last_run_on_it(reference: Reference, pieces: int | None) -> None:
    model, ids = tiny("qwen2", **BFLOAT16), prompts(20)[0][:1]
    with pytest.MonkeyPatch.context() as without:
        without.setattr(flash_four, "kernel", lambda: None)
        expected = logits(model, DASH, ids, piece_tokens=pieces)
    found = logits(model, DASH, ids, piece_tokens=pieces)
    assert torch.allclose(found, expected, atol=0.05)
    if pieces is None:
        assert reference.calls[:2] == [(20, 20)] * 2
        assert len(reference.calls) == LAYERS - 1  # the last has one query, which is not causal
        assert len(set(reference.calls)) == 2
    else:
        assert reference.calls[:4] == [(5, 5), (5, 10), (5, 15), (5, 20)]


def test_padded_prompts_and_those_that_stay_whole_run_as_before(reference: Reference) -> None:
    model, ids = tiny("qwen2", **BFLOAT16), prompts(20)[0]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    logits(model, DASH, ids, mask)
    logits(model, Dense(), ids[:1])
    assert (20, 20) not in reference.calls


def test_what_it_takes(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    part = torch.zeros(1, 2, 4, 64, dtype=torch.bfloat16)
    assert flash_four.takes(part, part, part)
    assert not flash_four.takes(part, part, part, dropout=0.1)
    assert not flash_four.takes(part.float(), part.float(), part.float())
    assert not flash_four.takes(*3 * [part[..., :20]])
    assert not flash_four.takes(*3 * [part.repeat(1, 1, 1, 4)])
    assert not flash_four.takes(part, part, part[..., :8])
    assert not flash_four.takes(part.clone().requires_grad_(), part, part)
    monkeypatch.setattr(flash_four, "FEWEST_PAIRS", 2 * 4 * 4 + 1)
    assert not flash_four.takes(part, part, part)


def test_a_mask_keeps_it_out(reference: Reference) -> None:
    assert backend(1, masked=False) is PLANLESS
    assert backend(1, masked=True) is not PLANLESS


def test_it_is_not_looked_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flash_four.kernel.cache_clear()
    assert flash_four.kernel() is None
    flash_four.kernel.cache_clear()


def test_rows_name_it(reference: Reference) -> None:
    model: Any = type("Model", (), {})()
    model.config = type("Config", (), {"_attn_implementation": "sdpa"})
    model.device = torch.device("cuda")
    assert attention_name(model) == "sdpa, FlashAttention 4"
