"""GemFilter: the tokens chosen against a naive reference, and the stock model on those tokens alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import DynamicCache

from deltahalt import PolicyError, UnsupportedError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.host.compat import CACHE
from deltahalt.methods.applying import applying, speedup_bound
from deltahalt.methods.gemfilter import GemFilter
from helpers.tiny import FULL_VARIANTS, SLIDING_VARIANTS, attributes, prompts, tiny

LAYER = 3
PAPERS = {"start": LAYER, "count": 12, "keep_first": 0, "keep_last": 1}


def reference(variant: str, ids: torch.Tensor, count: int, kernel: int) -> torch.Tensor:
    """The `count` of all but the last token that the last one looks for most at LAYER, and the last, ascending.

    Queries and keys after RoPE are taken where the stock model hands them to its attention function.
    """
    model = tiny(variant, "eager")
    module = __import__(type(model).__module__, fromlist=["eager_attention_forward"])
    seen: list[torch.Tensor] = []
    own = module.eager_attention_forward

    def watch(attention: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if attention.layer_idx == LAYER:
            seen.extend((query, key))
        return own(attention, query, key, *args, **kwargs)

    module.eager_attention_forward = watch
    try:
        with torch.no_grad():
            model(ids)
    finally:
        module.eager_attention_forward = own
    query, key = seen
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    scores = torch.zeros(ids.shape[1])
    for token in range(ids.shape[1]):
        for head in range(heads):
            scores[token] += torch.dot(query[0, head, -1], key[0, head // shared, token])
    half = kernel // 2
    padded = torch.nn.functional.pad(scores, (half, half))
    pooled = torch.stack([padded[token : token + kernel].mean() for token in range(ids.shape[1])])
    return torch.cat([pooled[:-1].topk(count).indices.sort().values, torch.tensor([ids.shape[1] - 1])])


def chosen(model: Any, method: GemFilter, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
    with applying(model, method) as applied, torch.no_grad():
        return applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask})


@pytest.mark.parametrize("kernel", [1, 5])
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_the_tokens_that_the_last_one_looks_for_are_kept(variant: str, kernel: int) -> None:
    ids, _ = prompts(60)
    short = chosen(tiny(variant), GemFilter(**PAPERS, kernel=kernel), ids)
    assert torch.equal(short["input_ids"], ids[:, reference(variant, ids, 12, kernel)])
    assert short["attention_mask"].all()


def test_the_model_reads_them_as_a_prompt_of_their_own() -> None:
    ids, _ = prompts(60)
    model, method = tiny(), GemFilter(**PAPERS)
    with applying(model, method) as applied, torch.no_grad():
        short = applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        out = model.generate(**short, **{CACHE: DynamicCache()}, max_new_tokens=5, do_sample=False)
        shape = applied.halted.shape
        spent = true_flops(shape, dense_loads(LAYER, 60), 60) + true_flops(shape, dense_loads(6, 13), 13)
        assert applied.flops == spent
    kept = ids[:, reference("llama", ids, 12, 5)]
    assert torch.equal(out, tiny().generate(kept, max_new_tokens=5, do_sample=False))


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    ids, mask = prompts(60, 41)
    model, method = tiny(), GemFilter(start=LAYER, pruning_ratio=0.5, keep_first=2, keep_last=3)
    both = chosen(model, method, ids, mask)
    for row, length in enumerate((60, 41)):
        alone = chosen(model, method, ids[row : row + 1, -length:])["input_ids"][0]
        assert torch.equal(both["input_ids"][row][both["attention_mask"][row].bool()], alone)
        assert len(alone) == length - round(0.5 * (length - 5))


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_a_layer_that_does_not_see_the_prompt_is_refused(variant: str) -> None:
    ids, _ = prompts(60)
    with pytest.raises(UnsupportedError, match="last 8 tokens only"):
        chosen(tiny(variant), GemFilter(start=5 if variant != "gemma3" else 3), ids.repeat(1, 3))


def test_scoring_keeps_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked, own = [], GemFilter.score

    def score(*args: Any) -> Any:
        tracked.append(torch.is_grad_enabled())
        return own(*args)

    monkeypatch.setattr(GemFilter, "score", score)
    ids, _ = prompts(120)
    with applying(tiny(), GemFilter(start=LAYER)) as applied:
        applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert tracked == [False]


def test_an_offloaded_layer_is_refused(tmp_path: Path) -> None:
    layers = {f"model.layers.{layer}": "disk" if layer == LAYER else "cpu" for layer in range(6)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    model = dispatch_model(tiny(), layers | rest, main_device="cpu", offload_dir=tmp_path)
    with pytest.raises(UnsupportedError, match="layer 3 is offloaded"):
        chosen(model, GemFilter(start=LAYER), prompts(120)[0])


def test_what_it_costs_is_known_from_the_length() -> None:
    shape = ModelShape(32, 64, 96, 4, 2, 16)
    method = GemFilter(start=13, count=1024, keep_first=0, keep_last=1)
    full = true_flops(shape, dense_loads(32, 8192), 8192)
    spent = true_flops(shape, dense_loads(13, 8192), 8192) + true_flops(shape, dense_loads(32, 1025), 1025)
    assert speedup_bound(shape, method, 8192) == pytest.approx(full / spent)


def test_the_model_is_as_before() -> None:
    model = tiny()
    before = attributes(model)
    chosen(model, GemFilter(), prompts(120)[0])
    assert attributes(model) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start": 1.0}, "start is 1"),
        ({"start": -1}, "start is -1"),
        ({"kernel": 4}, "kernel is 4"),
        ({"count": -1}, "count is -1"),
        ({"keep_last": 0}, "keep at least 1"),
        ({"keep_first": -1}, "keep_first"),
        ({"pruning_ratio": 1.0}, "pruning_ratio is 1"),
        ({"keep_first": 1.5}, "must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        GemFilter(**options)


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(PolicyError, match="starts at layer 13, but the model has layers 0 to 5"):
        chosen(tiny(), GemFilter(start=13), prompts(120)[0])
