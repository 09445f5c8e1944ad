"""Attention that is causal to the lower right."""

import pytest
import torch

from deltahalt import (
    UnsupportedError,
)
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


def test_an_attention_that_is_not_caught_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="did not call scaled_dot_product_attention"), lower_right.LowerRight():
        pass
