"""What `deltahalt observe` sees of the full model, against attention matrices that the host hands out."""

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt.engine.observer import observing
from deltahalt.lab.evaluation import observe as module
from deltahalt.lab.evaluation.observe import Observation, correlation, delta_edges, observe, observe_sample, ranks
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import SweepSettings, encode
from deltahalt.lab.rows.base import read_rows
from deltahalt.loading.models import LoadedModel
from deltahalt.policies.layer_view import LayerView
from helpers.tiny import VARIANTS, attributes, prompts, tiny

SAMPLE = Sample("tides", "The tide is in. " * 3, "at noon", question="When?")
TOKENS = 40


@pytest.fixture(params=["llama", "qwen2-sliding", "phi3", "gemma3"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(name: str, tokenizer: Any = None) -> LoadedModel:
    return LoadedModel(tiny(name, "eager"), tokenizer, name)


def observe_prompt(
    name: str, monkeypatch: pytest.MonkeyPatch, ids: torch.Tensor
) -> tuple[Observation, dict[str, torch.Tensor]]:
    """What is observed of a prompt [1, T], and what the host says itself: weights [L, heads, T, T], updates, inputs."""
    model = loaded(name)
    monkeypatch.setattr(module, "encode", lambda *_: module_encoded(ids))
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    (row,) = observe_sample(model, SAMPLE)
    return row, host(model.model, ids)


def module_encoded(ids: torch.Tensor) -> Any:
    return type("Encoded", (), {"prompt": ids})


def host(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    updates: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _a, out: updates.append(out[0][0]))
        for layer in model.get_decoder().layers
    ]
    with torch.no_grad():
        out = model(ids, output_attentions=True, output_hidden_states=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = len(updates)
    return {
        "weights": torch.stack(out.attentions)[:, 0],
        "updates": torch.stack(updates).norm(dim=-1),
        "inputs": torch.stack(out.hidden_states[:layers])[:, 0].norm(dim=-1),
    }


def test_every_token_s_delta_and_attention_are_the_host_s(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, naive = observe_prompt(variant, monkeypatch, prompts(TOKENS)[0])
    torch.testing.assert_close(torch.tensor(row.delta), naive["updates"].mean(dim=0), rtol=1e-3, atol=0)
    share = naive["weights"][-1].mean(dim=0).sum(dim=0) / TOKENS
    torch.testing.assert_close(torch.tensor(row.attention), share, rtol=1e-3, atol=1e-7)
    assert sum(row.attention) == pytest.approx(1, abs=1e-3)
    assert row.pearson == pytest.approx(statistics.correlation(row.delta, row.attention), abs=2e-3)
    ranked = naive_ranks(row.delta), naive_ranks(row.attention)
    assert row.spearman == pytest.approx(statistics.correlation(*ranked), abs=2e-3)


def naive_ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def test_every_layer_s_relative_deltas_are_counted(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, naive = observe_prompt(variant, monkeypatch, prompts(TOKENS)[0])
    edges = delta_edges()
    for counts, relative in zip(row.relative_delta, naive["updates"] / naive["inputs"], strict=True):
        assert sum(counts) == TOKENS
        for edge in (0, len(counts) // 2, 3 * len(counts) // 4, len(counts)):
            assert sum(counts[:edge]) == pytest.approx(int((relative < edges[edge]).sum()), abs=1)


def test_a_weight_far_below_its_query_s_largest_is_sparse(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNATTENDED", 0.3)  # tiny models attend evenly
    row, naive = observe_prompt(variant, monkeypatch, prompts(TOKENS)[0])
    assert all(row.sparsity)
    for layer, weights in enumerate(naive["weights"]):
        window = VARIANTS[variant].windows[layer] or TOKENS
        sparse = seen = 0
        for query in range(TOKENS):
            visible = weights[:, query, max(0, query - window + 1) : query + 1]
            sparse += int((visible < 0.3 * visible.amax(dim=-1, keepdim=True)).sum())
            seen += visible.numel()
        assert row.sparsity[layer] == pytest.approx(sparse / seen, abs=2 / seen)


def test_tokens_of_a_picture_have_a_row_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(TOKENS)[0]
    whole, naive = observe_prompt("llama", monkeypatch, ids)
    visual = torch.arange(TOKENS).lt(12) & torch.arange(TOKENS).ge(4)
    monkeypatch.setattr(LayerView, "visual", visual, raising=False)
    text, picture = observe_sample(loaded("llama"), SAMPLE)
    assert (text.modality, picture.modality, text.tokens, picture.tokens) == ("text", "visual", TOKENS - 8, 8)
    assert picture.delta == whole.delta[4:12]
    assert text.attention == whole.attention[:4] + whole.attention[12:]
    for layer, weights in enumerate(naive["weights"]):
        counting = (weights >= 0.01 * weights.amax(dim=-1, keepdim=True)).sum(dim=(0, 1))[4:12].sum()
        of = len(weights) * sum(TOKENS - token for token in range(4, 12))
        assert picture.sparsity[layer] == pytest.approx(1 - int(counting) / of, abs=2 / of)
    assert [sum(both) for both in zip(*text.relative_delta, strict=True)] != [0] * len(text.relative_delta[0])


def test_observing_shows_every_layer_and_halts_nothing() -> None:
    model, (ids, mask) = tiny("llama"), prompts(20, 1, 33)
    before, seen = attributes(model), []
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
        with observing(model, lambda view: seen.append((view.layer, view.prompt, len(view.positions)))) as halted:
            logits = model(ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits
    torch.testing.assert_close(logits[:, -1], wanted[:, -1], rtol=0, atol=1e-6)
    assert seen == [(layer, length, length) for layer in range(6) for length in (20, 1, 33)]
    assert not halted.report.stages
    assert attributes(model) == before


def test_no_attention_is_held_of_all_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    whole = module.attention_weights
    monkeypatch.setattr(
        module, "attention_weights", lambda queries, *rest: shapes.append(queries.shape[1]) or whole(queries, *rest)
    )
    observe_prompt("llama", monkeypatch, prompts(TOKENS)[0])
    assert set(shapes) == {7, TOKENS % 7}


def test_tied_values_share_their_rank() -> None:
    values = [3.0, 1.0, 3.0, 2.0, 3.0]
    assert ranks(torch.tensor(values)).tolist() == naive_ranks(values) == [3.0, 0.0, 3.0, 1.0, 3.0]


def test_what_does_not_vary_has_no_correlation() -> None:
    assert correlation(torch.ones(3), torch.arange(3.0)) is None
    assert correlation(torch.arange(3.0), torch.ones(3)) is None


def test_samples_already_in_the_rows_are_not_run_again(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, other = tmp_path / "rows.jsonl", replace(SAMPLE, question="Where?")
    first = list(observe(loaded_tiny, [SAMPLE], rows))
    run = []
    monkeypatch.setattr(module, "observe_sample", lambda *given: run.append(given[1]) or observe_sample(*given))
    both = list(observe(loaded_tiny, [SAMPLE, other, other], rows))
    assert run == [other]
    assert both[0] == first[0]
    assert both[1] == both[2]
    assert len(rows.read_text().splitlines()) == 2
    assert both[0].prompt == encode(loaded_tiny, SAMPLE, SweepSettings()).prompt.shape[1]


def test_the_command_writes_rows(
    deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"task": "tides", "prompt": "The tide is in. " * 5, "answer": "at noon"}))
    assert deltahalt("observe", "--model", tiny_folder, "--data", data, "--rows", rows, "--dtype", "float32") == 0
    assert "tides" in capsys.readouterr().out
    (row,) = read_rows(rows, Observation)
    assert len(row.delta) == len(row.attention) == row.tokens == row.prompt
    assert len(row.sparsity) == len(row.relative_delta) == 6
    assert deltahalt("report", rows) == 0
    head, _, line = capsys.readouterr().out.strip().splitlines()
    assert head == "| model | task | modality | tokens | Pearson | Spearman | sparsity by layer |"
    assert f"| tides | text | {row.tokens} | {row.pearson:+.2f} | {row.spearman:+.2f} |" in line


def test_the_command_observes_both_modalities_of_generated_pictures(
    deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, small = tmp_path / "rows.jsonl", Path(__file__).parents[2] / "assets/small-vlm"
    asked = ("observe", "--model", small, "--data", "pictures:2", "--rows", rows, "--dtype", "float32")
    assert deltahalt(*asked) == 0
    assert deltahalt(*asked) == 0  # nothing is run again
    first_text, first_visual, *_ = found = read_rows(rows, Observation)
    assert [row.modality for row in found] == ["text", "visual"] * 2
    assert {row.model for row in found} == {"small-vlm"}
    assert first_visual.tokens == 256 == first_text.prompt - first_text.tokens
    assert first_text.sample == first_visual.sample != found[2].sample
    assert sum(first_text.attention + first_visual.attention) == pytest.approx(1, abs=1e-3)


def test_pictures_need_a_model_that_takes_them(
    deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert deltahalt("observe", "--model", tiny_folder, "--data", "pictures:2", "--rows", rows) == 2
    assert "not a vision-language model" in capsys.readouterr().err
    assert deltahalt("observe", "--model", tiny_folder, "--data", "pictures:no", "--rows", rows) == 2
    assert "not whole numbers" in capsys.readouterr().err
