"""cuDNN's attention plans for every new length: layers that hold different tokens use it where a plan is worth it."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Dense, halting
from deltahalt.engine import backends
from deltahalt.engine.backends import MASKED, WITHOUT_CUDNN, backend
from deltahalt.host.compat import CACHE
from helpers.tiny import LAYERS, SIZES, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)  # layers 0 and 1 run on all tokens
HEADS = SIZES["num_attention_heads"]


def allowed() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


def watched(model: Any) -> list[list[bool]]:
    """By call of the model, whether each layer may use cuDNN."""
    calls: list[list[bool]] = []
    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(lambda *_: calls[-1].append(allowed()))
    model.get_decoder().embed_tokens.register_forward_hook(lambda *_: calls.append([]))
    return calls


@pytest.mark.parametrize(("policy", "may"), [(DASH, False), (Dense(), True)])
def test_short_calls_go_without_where_layers_hold_different_tokens(policy: Any, may: bool) -> None:
    model = tiny()
    calls = watched(model)
    ids, mask = prompts(20)
    cache = DynamicCache(config=model.config)
    with halting(model, policy), torch.no_grad():
        model(ids, attention_mask=mask, **{CACHE: cache}, logits_to_keep=1)
        assert allowed()
        model(ids[:, :1], **{CACHE: cache})
        model(ids[:, :3], **{CACHE: cache})
    assert calls == [[may] * LAYERS] * 3
    assert allowed()


def test_each_run_of_layers_is_weighed_by_its_own_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    calls = watched(model)
    ids = prompts(20)[0][:1]
    with halting(model, DASH) as halted, torch.no_grad():
        model(ids, logits_to_keep=1)
        active = halted.report.stages[0][1][0].numel()
        before, behind = HEADS * 2 * 20 * 20, HEADS * (LAYERS - 3) * active * active  # the last layer has one query
        assert behind < before
        for worth in (behind - 1, behind, before):
            monkeypatch.setattr(backends, "PAIRS_A_PLAN", worth)
            model(ids, logits_to_keep=1)
    assert calls[1:] == [[first] * 2 + [deeper] * (LAYERS - 3) + [0] for first, deeper in ((1, 1), (1, 0), (0, 0))]


def test_layers_of_another_window_have_a_plan_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gemma3")  # behind layer 1: full, sliding, full, sliding, of which the last have a mask
    calls = watched(model)
    ids = prompts(20)[0][:1]
    with halting(model, DASH) as halted, torch.no_grad():
        model(ids, logits_to_keep=1)
        active = halted.report.stages[0][1][0].numel()
        for worth in (HEADS * 2 * active * active - 1, HEADS * 2 * active * active):
            monkeypatch.setattr(backends, "PAIRS_A_PLAN", worth)
            model(ids, logits_to_keep=1)
    assert [call[2:] for call in calls[1:]] == [[True] * 4, [False, True, False, True]]


def test_later_calls_count_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    calls = watched(model)
    ids = prompts(20)[0][:1]
    cache = DynamicCache(config=model.config)
    with halting(model, DASH) as halted, torch.no_grad():
        model(ids, **{CACHE: cache}, logits_to_keep=1)
        active = halted.report.stages[0][1][0].numel()
        pairs = HEADS * (LAYERS - 2) * 3 * (active + 3)
        for worth in (pairs * MASKED - 1, pairs * MASKED):
            monkeypatch.setattr(backends, "PAIRS_A_PLAN", worth)
            model(ids[:, :3], **{CACHE: cache})
            cache.crop(-3)
    assert [call[2:] for call in calls[1:]] == [[True] * (LAYERS - 2), [False] * (LAYERS - 2)]


def test_a_mask_makes_cudnn_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "PAIRS_A_PLAN", 100)
    seen = []
    for pairs, masked in ((100, False), (101, False), (100 // MASKED, True), (100 // MASKED + 1, True)):
        with backend(pairs, masked=masked):
            seen.append(allowed())
    assert seen == [False, True, False, True]


def test_what_was_allowed_before_is_again_also_after_an_error() -> None:
    def fails() -> None:
        with WITHOUT_CUDNN:
            assert not allowed()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert allowed()
    with WITHOUT_CUDNN:
        with WITHOUT_CUDNN:
            pass
        assert not allowed()


def test_of_two_at_once_the_last_turns_it_back() -> None:
    WITHOUT_CUDNN.__enter__()
    WITHOUT_CUDNN.__enter__()
    WITHOUT_CUDNN.__exit__()
    assert not allowed()
    WITHOUT_CUDNN.__exit__()
    assert allowed()
