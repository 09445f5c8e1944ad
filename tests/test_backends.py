"""cuDNN's attention, which plans for every new length, is kept from layers that hold different tokens."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Dense, halting
from deltahalt.engine.backends import without_cudnn
from tiny import prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)


def allowed() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("policy", "later"), [(DASH, False), (Dense(), True)])
def test_only_calls_on_a_halted_cache_go_without(policy: Any, later: bool) -> None:
    model, seen = tiny(), []
    model.get_decoder().layers[2].register_forward_hook(lambda *_: seen.append(allowed()))
    ids, mask = prompts(20)
    cache = DynamicCache(config=model.config)
    with halting(model, policy), torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        model(ids[:, :1], past_key_values=cache)
        model(ids[:, :3], past_key_values=cache)
        model(ids, attention_mask=mask, logits_to_keep=1)
    assert seen == [True, later, later, True]
    assert allowed()


def test_what_was_allowed_before_is_again_also_after_an_error() -> None:
    def fails() -> None:
        with without_cudnn():
            assert not allowed()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert allowed()
    with without_cudnn():
        with without_cudnn():
            pass
        assert not allowed()


def test_of_two_at_once_the_last_turns_it_back() -> None:
    first, second = without_cudnn(), without_cudnn()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not allowed()
    second.__exit__(None, None, None)
    assert allowed()
