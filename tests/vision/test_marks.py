"""Visual tokens that a vision tower has marked as dropped, by NaN in place of their features: gone before layer 0."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Dense, InputError, Policy, Progressive, Report, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.host.blocks import Block
from deltahalt.host.compat import CACHE
from deltahalt.vision import VISION_POLICIES, halting_vision
from deltahalt.vision.towers import known_towers
from helpers.oracle import Feed, Oracle, reports_of
from helpers.tiny_vision import BATCH, VISION, Prompts, Row, features_of, tiny_vision, vision_prompts
from helpers.vision_ways import generated, logits_of, more

TOLERANCE = 1e-5
HALF = Dash(start=1, pruning_ratio=0.5, scope="visual")
UNEVEN: tuple[Row, ...] = ((4, (4, 2), 3, (3, 3), 11), (3, (2, 3), 8), (2, (4, 4), 20))


@contextmanager
def marking(model: Any, share: float, *, image: int | None = None) -> Iterator[list[torch.Tensor]]:
    """Have the host's features come with NaN in a `share` of each image's rows. image: drop this one wholly.

    Yields the marks of each call, [visual tokens] bool.
    """
    base = model.model
    find, calls = base.get_image_features, []

    @functools.wraps(find)
    def marked(*args: Any, **kwargs: Any) -> Any:
        output = find(*args, **kwargs)
        marks = []
        for number, features in enumerate(features_of(output)):
            rows = features.flatten(0, -2)  # the same memory
            marks.append(rows[:, 0] < rows[:, 0].quantile(share) if number != image else torch.ones(len(rows)) > 0)
            rows[marks[-1]] = torch.nan
        for depth in getattr(output, "deepstack_features", None) or ():
            by_image = [depth] if isinstance(depth, torch.Tensor) else depth  # older versions do not split it
            for features, gone in zip(by_image, torch.cat(marks).split([len(part) for part in by_image]), strict=True):
                features[gone] = torch.nan
        calls.append(torch.cat(marks))
        return output

    base.get_image_features = marked
    try:
        with Block({}, marks=base).opened():  # as if a policy were attached to the ViT
            yield calls
    finally:
        del base.get_image_features


def gap(name: str, attention: str, policy: Policy | Progressive, rows: tuple[Row, ...], share: float = 0.6) -> float:
    """Largest difference of any logit from a host with all features, whose layers may not read those dropped."""
    model = tiny_vision(name, attention)
    prompts = vision_prompts(model, name, rows)
    with halting(model, policy) as halted, marking(model, share):
        ours = logits_of(Feed(model), prompts)
    assert halted.report.stages[0][0] == -1
    oracle = oracle_of(name, model, prompts, halted.report)
    theirs = logits_of(oracle, prompts)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def oracle_of(name: str, model: Any, prompts: Prompts, report: Report) -> Oracle:
    blocks = prompts.blocks if name == "gemma3" else None
    return Oracle(model, VISION[name].windows, report, blocks=blocks)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VISION)
def test_dropped_tokens_are_read_by_no_layer(name: str, attention: str) -> None:
    """Rows keep numbers of tokens that have nothing to do with their lengths."""
    assert gap(name, attention, Dense(), UNEVEN) < TOLERANCE


@pytest.mark.parametrize("name", VISION)
def test_a_policy_halts_some_of_those_that_are_left(name: str) -> None:
    assert gap(name, "sdpa", HALF, UNEVEN, share=0.3) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
@pytest.mark.parametrize("start", [0, 2])
def test_a_policy_at_the_layers_of_deepstack(name: str, start: int) -> None:
    policy = Dash(start=start, pruning_ratio=0.5, scope="visual", boundary="attention")
    assert gap(name, "sdpa", policy, BATCH, share=0.3) < TOLERANCE


def test_the_ratio_is_a_share_of_what_the_tower_has_left() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", UNEVEN)
    with halting(model, HALF) as halted, marking(model, 0.5):
        prompts.feed(Feed(model))
    left, kept = (rows for _, rows in halted.report.stages)
    for row in range(len(UNEVEN)):
        own = prompts.visual[row, prompts.mask[row].bool()]
        before, after = int(own[left[row]].sum()), int(own[kept[row]].sum())
        assert 0 < before < own.sum()
        assert after == before - round(0.5 * before)
        assert set(kept[row].tolist()) <= set(left[row].tolist())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3"])
def test_an_image_may_lose_all_its_tokens(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, Dense()) as halted, marking(model, 0.3, image=0):
        ours = logits_of(Feed(model), prompts)
    theirs = logits_of(oracle_of(name, model, prompts, halted.report), prompts)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_padding_that_copies_a_marked_token_is_zero(name: str) -> None:
    """Rows that keep fewer tokens are padded with copies of their first, here of an image and dropped."""
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ((0, (4, 4), 3), (20,)))
    given = prompts.inputs | {"logits_to_keep": 1}
    given |= {"input_ids": prompts.ids[:, 1:], "attention_mask": prompts.mask[:, 1:]}  # begins with the image
    if prompts.positions is not None:
        given["position_ids"] = prompts.positions[..., 1:]
    with torch.no_grad(), halting(model, Dense()), marking(model, 0.95) as marks:
        logits = model(**given).logits
    assert marks[0][0]
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", VISION)
def test_generate(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, HALF) as halted, marking(model, 0.4):
        ours = generated(model, prompts)
    oracle, width = oracle_of(name, model, prompts, halted.report), prompts.ids.shape[1]
    theirs = [prompts.feed(oracle)[:, -1]]
    theirs += [oracle(ours.sequences[:, [place]])[:, -1] for place in range(width, width + 3)]
    assert max(float((a - b).abs().max()) for a, b in zip(ours.logits, theirs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_features_are_expanded_with_their_marks(options: dict[str, Any]) -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    torch.manual_seed(0)
    with halting(model, HALF) as halted, marking(model, 0.4):
        ours = generated(model, prompts, output_logits=False, **options)
    assert len(halted.report.kept) == 4
    assert all(torch.equal(halted.report.kept[row], halted.report.kept[row + 1]) for row in (0, 2))
    assert (ours.sequences[:, prompts.ids.shape[1] :] > 0).any()


def test_without_halting_marks_reach_the_user() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    with marking(model, 0.4):
        assert prompts.feed(Feed(model)).isnan().all()


@pytest.mark.parametrize("method", VISION_POLICIES)
@pytest.mark.parametrize("name", sorted(known_towers()))
def test_what_a_method_in_the_vision_tower_leaves(name: str, method: str) -> None:
    """The decoder under both seams, against the host given the same features where they are, and others elsewhere."""
    model = tiny_vision(name)
    base, find, outputs = model.model, model.model.get_image_features, []
    prompts = vision_prompts(model, name, BATCH)

    def noting(*args: Any, **kwargs: Any) -> Any:
        outputs.append(find(*args, **kwargs))
        return copy.deepcopy(outputs[0])

    base.get_image_features = noting
    with halting(model, HALF) as halted, halting_vision(model, f"{method}:retain=0.7"):
        ours = logits_of(Feed(model), prompts)
    assert any(features.isnan().any() for features in features_of(outputs[0]))
    for features in features_of(outputs[0]):
        features[features.isnan()] = 7
    base.get_image_features = lambda *_, **__: outputs[0]
    theirs = logits_of(oracle_of(name, model, prompts, halted.report), prompts)
    assert [layer for layer, _ in halted.report.stages] == [-1, 1]
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


# --- the cache ---


def test_the_cache_counts_what_was_dropped() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    with halting(model, Dense()) as halted, marking(model, 0.4):
        feed = Feed(model)
        prompts.feed(feed)
        held = [layer.keys.shape[-2] for layer in feed.cache.layers]
        assert isinstance(feed.cache, HaltedCache)
        assert [feed.cache.get_seq_length(layer) for layer in range(6)] == [prompts.ids.shape[1]] * 6
        assert held == [max(map(len, halted.report.kept))] * 6
        feed(more(2, 3))
        assert feed.cache.get_seq_length() == prompts.ids.shape[1] + 3


def test_only_what_every_layer_holds_can_be_cropped() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    feed, expected = Feed(model), Feed(model)
    for one in (feed, expected):
        with halting(model, Dense()), marking(model, 0.4):
            prompts.feed(one)
    with halting(model, Dense()):
        feed(more(2, 2, seed=2))
        feed.cache.crop(-2)
        feed.mask = feed.mask[:, :-2]
        assert (feed(more(2)) - expected(more(2))).abs().max() < TOLERANCE
        with pytest.raises(InputError, match="Run the shorter prompt with a new cache"):
            feed.cache.crop(-9)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
def test_generate_in_turns_on_one_cache(name: str) -> None:
    """The second turn slices its input by what the cache says it has seen, dropped tokens included."""
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    cache: Any = DynamicCache(config=model.config)
    with halting(model, HALF) as halted, marking(model, 0.4):
        first = generated(model, prompts, **{CACHE: cache})
        width = first.sequences.shape[1]
        second = torch.cat([first.sequences, more(2, 4)], dim=1)
        mask = torch.cat([prompts.mask, torch.ones(2, second.shape[1] - prompts.ids.shape[1], dtype=torch.long)], dim=1)
        longer = Prompts(second, mask, {})
        positions: list[
            torch.Tensor
        ] = []  # the host's own, which older versions count otherwise where there is padding
        hook = model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
        )
        follow_up = generated(model, longer, **{CACHE: cache})
        hook.remove()
    oracle = oracle_of(name, model, prompts, halted.report)
    prompts.feed(oracle)
    oracle(first.sequences[:, prompts.ids.shape[1] : width - 1])
    planes = positions[0] if positions[0].ndim == 3 else positions[0][None]
    theirs = [
        oracle(second[:, width - 1 :], positions=planes[-3:].expand(3, -1, -1) if name != "llava" else None)[:, -1]
    ]
    theirs += [oracle(follow_up.sequences[:, [place]])[:, -1] for place in range(width + 4, width + 7)]
    assert max(float((a - b).abs().max()) for a, b in zip(follow_up.logits, theirs, strict=True)) < TOLERANCE


FIRST: tuple[Row, ...] = ((5, (2, 4), 6),)
NEXT: tuple[Row, ...] = ((3, (3, 3), 4),)


def in_turns(feed: Feed, first: Prompts, after: Prompts, **options: Any) -> list[torch.Tensor]:
    """The last logits of a prompt whose images are new to the cache of another, and those of text behind it."""
    first.feed(feed)
    positions, inputs = after.positions, after.inputs | options
    if positions is not None and first.positions is not None:
        positions = positions + first.positions.amax() + 1
    if "token_type_ids" in inputs:  # the host wants them of the whole conversation
        inputs["token_type_ids"] = torch.cat([first.inputs["token_type_ids"], inputs["token_type_ids"]], dim=1)
    second = feed(after.ids, None, positions, **{"logits_to_keep": 1} | inputs)
    return [second, feed(more(1, 2)), feed(more(1, 3))]


@pytest.mark.parametrize("name", VISION)
def test_a_turn_that_brings_an_image_is_the_host_s_bit_for_bit(name: str) -> None:
    model = tiny_vision(name)
    turns = vision_prompts(model, name, FIRST), vision_prompts(model, name, NEXT, seed=1)
    expected = in_turns(Feed(model), *turns)
    with halting(model, Dense()):
        ours = in_turns(Feed(model), *turns)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "idefics3", "smolvlm"])
def test_generate_with_a_new_image_on_one_cache(name: str) -> None:
    """The Qwen hosts themselves fail in this, marked or not."""
    model = tiny_vision(name)
    first, after = vision_prompts(model, name, FIRST), vision_prompts(model, name, NEXT, seed=1)

    def in_two_calls() -> list[torch.Tensor]:
        cache: Any = DynamicCache(config=model.config)
        ids = torch.cat([generated(model, first, **{CACHE: cache}).sequences, after.ids], dim=1)
        logits: list[torch.Tensor] = generated(
            model, Prompts(ids, torch.ones_like(ids), after.inputs), **{CACHE: cache}
        ).logits
        return logits

    expected = in_two_calls()
    with halting(model, Dense()):
        assert all(torch.equal(a, b) for a, b in zip(in_two_calls(), expected, strict=True))
    with halting(model, HALF), marking(model, 0.4):
        assert all(logits.isfinite().all() for logits in in_two_calls())


@pytest.mark.parametrize(("policy", "share"), [(Dense(), 0.4), (HALF, 0.4), (HALF, 0.0)], ids=str)
@pytest.mark.parametrize("name", [name for name in VISION if name != "gemma3"])
def test_a_turn_that_brings_an_image(name: str, policy: Policy, share: float) -> None:
    """Marked tokens of the new image are dropped, and the policy halts some of the others."""
    model = tiny_vision(name)
    first, after = vision_prompts(model, name, FIRST), vision_prompts(model, name, NEXT, seed=1)
    with halting(model, policy) as halted, marking(model, share) as marks, reports_of(model, halted) as reports:
        ours = in_turns(Feed(model), first, after)
    theirs = in_turns(oracle_of(name, model, first, reports[0]), first, after, report=reports[1])
    stages = ([-1] if share else []) + [stage.start for stage in policy.stages]
    assert [layer for layer, _ in reports[1].stages] == stages
    read = torch.zeros_like(after.ids, dtype=torch.bool).index_fill(1, reports[1].stages[0][1][0], True)
    if share:
        assert torch.equal(read, ~torch.zeros_like(after.visual).masked_scatter(after.visual, marks[1]))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def test_a_crop_into_a_marked_image_of_a_later_turn_is_refused() -> None:
    model = tiny_vision()
    first, after = vision_prompts(model, "qwen2_vl", FIRST), vision_prompts(model, "qwen2_vl", NEXT, seed=1)
    with halting(model, Dense()), marking(model, 0.4):
        feed = Feed(model)
        in_turns(feed, first, after)
        feed.cache.crop(-5)  # the text behind it
        with pytest.raises(InputError, match="only the last 1 are in every layer"):
            feed.cache.crop(-2)


def test_a_marked_image_in_a_turn_on_a_plain_cache() -> None:
    model = tiny_vision()
    first, after = vision_prompts(model, "qwen2_vl", ((9,),)), vision_prompts(model, "qwen2_vl", NEXT, seed=1)
    with halting(model, Dense()) as halted, marking(model, 0.4) as marks, reports_of(model, halted) as reports:
        feed = Feed(model)
        ours = in_turns(feed, first, after)
    assert isinstance(feed.cache, HaltedCache)
    (kept,) = reports[1].stages[0][1]
    assert len(kept) == after.ids.shape[1] - int(marks[0].sum())
    theirs = in_turns(oracle_of("qwen2_vl", model, first, reports[0]), first, after, report=reports[1])
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


# --- what is refused ---


def test_a_prompt_that_ends_in_a_dropped_token_is_refused() -> None:
    model = tiny_vision("llava")
    prompts = vision_prompts(model, "llava", ((4, (1, 1), 0),))
    ids, mask = prompts.ids[:, :-1], prompts.mask[:, :-1]
    message = "put text after the image"
    with torch.no_grad(), halting(model, Dense()), marking(model, 1.0), pytest.raises(InputError, match=message):
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1, **prompts.inputs)


def test_logits_of_dropped_tokens_are_refused() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    message = "pass logits_to_keep=1"
    with torch.no_grad(), halting(model, Dense()), marking(model, 0.4), pytest.raises(UnsupportedError, match=message):
        model(**prompts.call(), position_ids=prompts.positions)


def test_logits_of_dropped_tokens_of_a_later_turn_are_refused() -> None:
    model = tiny_vision()
    first, after = vision_prompts(model, "qwen2_vl", FIRST), vision_prompts(model, "qwen2_vl", NEXT, seed=1)
    with halting(model, Dense()), marking(model, 0.4), pytest.raises(UnsupportedError, match="pass logits_to_keep=1"):
        in_turns(Feed(model), first, after, logits_to_keep=0)


def test_prefill_in_chunks_is_refused() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", BATCH)
    with halting(model, Dense()), marking(model, 0.4), pytest.raises(UnsupportedError, match="prefill_chunk_size"):
        generated(model, prompts, prefill_chunk_size=8)
