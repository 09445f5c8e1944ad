"""SnapKV by our commands is kvpress's own."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from deltahalt import InputError, UnsupportedError
from deltahalt.answering.ask import ask
from deltahalt.lab.bench.measure import measure
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import sweep
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying
from deltahalt.methods.registry import parse_method
from deltahalt.methods.snapkv import SnapKV
from helpers.tiny import prompts, tiny

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

import kvpress

from helpers.presses import CONTEXT, IDS, TOLERANCE, held

SNAPKV = SnapKV(pruning_ratio=0.5, window=8)


def test_snapkv_is_kvpress_s_own() -> None:
    """The same entries stay in every layer, and the next token reads them as after kvpress's own prefill."""
    ours, theirs, token = DynamicCache(), DynamicCache(), torch.tensor([[7]])
    model, stock = tiny(), tiny()
    with torch.no_grad():
        with applying(model, SNAPKV) as applied:
            first = model(
                **applied.shorten({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
                past_key_values=ours,
                logits_to_keep=1,
            ).logits
            assert applied.halted.report.lengths == ((40,) * 6,)
            second = model(token, past_key_values=ours).logits
        with kvpress.SnapKVPress(0.5, window_size=8, kernel_size=5)(stock):
            assert (first - stock(IDS, past_key_values=theirs, logits_to_keep=1).logits).abs().max() < TOLERANCE
        wanted = stock(token, past_key_values=theirs, position_ids=torch.tensor([[40]])).logits
    assert (second - wanted).abs().max() < TOLERANCE
    assert held(ours) == held(theirs) == [21] * 6
    for mine, own in zip(ours.layers, theirs.layers, strict=True):
        assert torch.allclose(mine.keys, own.keys, atol=TOLERANCE)


def test_snapkv_in_an_answer_a_sweep_and_the_bench(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    ids = loaded_tiny.tokenizer(CONTEXT * 3, return_tensors="pt")["input_ids"]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    full, compressed = ask(loaded_tiny, asked, None), ask(loaded_tiny, asked, SNAPKV)
    assert compressed.lengths == full.lengths
    assert compressed.cache_bytes == full.cache_bytes * int(ids.shape[1] * 0.5) // ids.shape[1]
    text = "snapkv:pruning_ratio=0.5,window=8"
    sample = Sample("qa", CONTEXT * 3, "In spring", question="When?")
    (row,) = list(sweep(loaded_tiny, [sample], {text: parse_method(text)}, tmp_path / "rows.jsonl"))
    assert row.nll != row.full_nll
    assert row.speedup == 1
    given = random_prompts(loaded_tiny.model, 60, 2, seed=0)
    ((benched,),) = measure(loaded_tiny.model, "tiny", {text: parse_method(text)}, given, new_tokens=3, repeats=1)
    assert benched.gain.flops == 1
    assert benched.gain.kv_bytes == 2


def test_snapkv_refuses_what_it_cannot_do() -> None:
    with applying(tiny(), SNAPKV) as applied, pytest.raises(InputError, match="longer than snapkv's window"):
        applied.shorten({"input_ids": IDS[:, :8], "attention_mask": torch.ones(1, 8)})
    model, (ids, mask) = tiny(), prompts(40, 20)
    with applying(model, SNAPKV), pytest.raises(UnsupportedError, match="one by one"):
        model(ids, attention_mask=mask)
    model = tiny("gemma3")
    with pytest.raises(UnsupportedError, match="sliding-window"), applying(model, SNAPKV):
        pass
