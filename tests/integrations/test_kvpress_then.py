"""`DeltaPress(then=...)`: halt, then let a press of kvpress compress what is left."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import InputError
from helpers.oracle import Feed, Oracle
from helpers.tiny import VARIANTS, prompts, tiny

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

from deltahalt.engine.kv_press import FOLLOWING
from deltahalt.integrations.kvpress import DeltaPress
from helpers.presses import (
    CONTEXT,
    IDS,
    QUESTIONS,
    SMALL,
    TOLERANCE,
    Listener,
    encoded,
    follower,
    held,
    pipe,
    prefilled,
)


class HeadOracle(Oracle):
    """An oracle whose heads, once the prompt is read, see only `heads` of it: by layer, [heads, T]."""

    heads: tuple[torch.Tensor, ...]

    def _mask(self, index: int, layer: Any, new: int, undo: Any) -> None:
        columns = self.active[0].shape[1]
        if new == columns:
            super()._mask(index, layer, new, undo)
            return
        readable = self.heads[index]
        visible = torch.ones(len(readable), new, columns, dtype=torch.bool).tril(columns - new)
        visible[:, :, : readable.shape[1]] = readable[:, None]
        mask = visible[None]
        if self.model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def replace(_: Any, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"attention_mask": mask}

        undo.callback(layer.register_forward_pre_hook(replace, with_kwargs=True).remove)


def chosen_by_heads(model: Any, press: Any, follower: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    """What each head keeps of a halted prompt, by layer [heads, T], from the press's scores of the halted layers."""
    seen: dict[int, Any] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen[module.layer_idx] = (kwargs, output[1])

    hooks = [layer.self_attn.register_forward_hook(note, with_kwargs=True) for layer in model.model.layers]
    cache, halted = prefilled(model, press)
    for hook in hooks:
        hook.remove()
    ((decided, (kept,)),) = halted.report.stages
    heads = []
    for index, layer in enumerate(model.model.layers):
        columns = kept if index > decided else torch.arange(IDS.shape[1])
        kwargs, weights = seen[index]
        stored = cache.layers[index]
        scores = follower.score(layer.self_attn, kwargs["hidden_states"], stored.keys, stored.values, weights, kwargs)
        best = columns[scores[0].topk(int(len(columns) * (1 - follower.compression_ratio))).indices]
        readable = torch.zeros(len(best), IDS.shape[1], dtype=torch.bool).scatter_(1, best, True)
        heads.append(readable.repeat_interleave(layer.self_attn.num_key_value_groups, dim=0))
    return tuple(heads), halted.report


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("name", [press.__name__ for press in FOLLOWING])
def test_a_kv_press_compresses_what_halting_left(name: str, variant: str, attention: str) -> None:
    """Prefill, a question, single tokens: each head reads what the press chose for it of the halted layer."""
    model = tiny(variant, attention)
    calls = [IDS, IDS[:, 3:9], IDS[:, 7:8], IDS[:, 5:8]]
    with DeltaPress(**SMALL, then=follower(name))(model) as halted:
        feed = Feed(model)
        ours = [feed(tokens, logits_to_keep=0 if number else 1) for number, tokens in enumerate(calls)]
    assert held(feed.cache) == [30, 30, 19, 19, 19, 19]  # half of 40 and of 19, and 10 new ones

    heads, report = chosen_by_heads(tiny(variant, attention), DeltaPress(**SMALL), follower(name))
    assert [part.tolist() for part in halted.report.kept] == [part.tolist() for part in report.kept]
    oracle = HeadOracle(model, VARIANTS[variant].windows, report)
    oracle.heads = heads
    for tokens, logits in zip(calls, ours, strict=True):
        assert (oracle(tokens)[:, -logits.shape[1] :] - logits).abs().max() < TOLERANCE


def test_rows_of_a_batch_are_compressed_as_if_alone() -> None:
    ids = prompts(40, 40)[0]
    logits = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        model = tiny()
        with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
            feed = Feed(model)
            feed(ids[rows], logits_to_keep=1)
            logits.append(feed(ids[rows, :5]))
    assert (logits[0] - torch.cat(logits[1:])).abs().max() < TOLERANCE


def test_questions_on_what_a_kv_press_has_left(tokenizer: Any) -> None:
    press = DeltaPress(**SMALL, then=follower("SnapKVPress"))
    model = tiny(vocab_size=len(tokenizer))
    ask = pipe(model, tokenizer)
    listener = Listener(model)
    together = ask(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6)["answers"]
    assert together == [ask(CONTEXT, question=text, press=press, max_new_tokens=6)["answer"] for text in QUESTIONS]
    context = encoded(tokenizer)
    for calls in listener.questions(6)[:3]:
        with press(model), torch.no_grad():
            feed = Feed(model)
            feed(context)
            for tokens, logits in calls:
                assert (feed(tokens)[:, -1] - logits[:, -1]).abs().max() < TOLERANCE


def test_a_prompt_too_short_to_halt_is_compressed_all_the_same(tokenizer: Any) -> None:
    model = tiny(vocab_size=len(tokenizer))
    ours, theirs = (
        pipe(model, tokenizer)(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=6)
        for press in (DeltaPress(then=follower("SnapKVPress")), follower("SnapKVPress"))
    )
    assert ours == theirs
    with follower("SnapKVPress")(model):
        expected = model.generate(IDS, max_new_tokens=5)
    with DeltaPress(then=follower("SnapKVPress"))(model):
        assert torch.equal(model.generate(IDS, max_new_tokens=5), expected)


def test_a_compressed_prompt_is_cropped_down_to_and_not_into() -> None:
    model = tiny()
    with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
        feed = Feed(model)
        feed(IDS, logits_to_keep=1)
        before = held(feed.cache)
        feed(IDS[:, :4])
        feed.cache.crop(-4)
    assert held(feed.cache) == before
    with pytest.raises(InputError, match="only the last 0"):
        feed.cache.crop(-1)


def test_a_cache_filled_outside_the_block_is_gone_on_with() -> None:
    model = tiny()
    feed, expected = Feed(model), Feed(model)
    for one in (feed, expected):
        one(IDS)
    with DeltaPress(**SMALL, then=follower("SnapKVPress"))(model):
        logits = feed(IDS[:, :4])
    assert type(feed.cache) is DynamicCache
    assert (logits - expected(IDS[:, :4])).abs().max() < TOLERANCE
