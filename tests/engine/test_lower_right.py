"""Attention that is causal to the lower right."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from deltahalt import UnsupportedError
from deltahalt.host import lower_right


@pytest.mark.parametrize("kernel", ["flash", "masks"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (5, 9), (9, 9), (2100, 2345)])
def test_attention_to_the_lower_right(
    queries: int, keys: int, groups: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU torch writes out the mask that it hands to FlashAttention as an argument on a GPU."""
    monkeypatch.setattr(lower_right, "can_use_flash_attention", lambda _: kernel == "flash")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, queries, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, keys, 8, generator=generator)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    scores = query @ key.repeat_interleave(groups, dim=1).mT * 0.3
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    ours = lower_right.attend_lower_right(query, key, value, 0.3)
    theirs = weights @ value.repeat_interleave(groups, dim=1)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 8, 22])
def test_blocks_of_keys_have_few_sizes(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain reference stands in for cuDNN."""
    seen = []

    def attend(
        query: Any, key: Any, value: Any, bias: None, log: bool, p: float, causal: bool, *_: Any, scale: Any
    ) -> Any:
        seen.append(key.shape[2])
        scores = query @ key.mT * scale
        if causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        return scores.softmax(dim=-1) @ value, scores.logsumexp(dim=-1, keepdim=True)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", attend, raising=False)
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: SDPBackend.CUDNN_ATTENTION.value)
    query = torch.randn(2, 2, 5, 8)
    key, value = torch.randn(2, 2, 2, 5 * pieces, 8)
    found = lower_right.attend_lower_right(query, key, value, 0.3)
    monkeypatch.undo()
    assert torch.allclose(found, lower_right.attend_lower_right(query, key, value, 0.3), atol=1e-5)
    assert sum(seen) == 5 * pieces
    assert seen[-1] == 5
    assert {size.bit_count() for size in (keys // 5 for keys in seen)} == {1}
    assert len(seen) <= 1 + pieces.bit_length()


def test_an_attention_that_is_not_caught_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="did not call scaled_dot_product_attention"), lower_right.LowerRight():
        pass
