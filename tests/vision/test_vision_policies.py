"""The methods for visual tokens against references written out plainly, and scopes without a model."""

from typing import Any

import pytest
import torch

from deltahalt import (
    Dart,
    Dash,
    FastV,
    KeyNorm,
    PolicyError,
    Progressive,
    SparseVLM,
    V2Drop,
    WindowAttention,
    parse_policy,
)
from deltahalt.kinds import DROPPED, IMAGE, TEXT, VIDEO
from deltahalt.policies.attention_scores import READERS, attention_from, received_attention
from deltahalt.policies.base import Policy, place
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.sparse_vlm import STEP, TextRaters
from helpers.memory import Largest
from helpers.views import HIDDEN, attention_matrix, layer_view

# 6 of text, 20 of an image, 4 of text, 9 of a video, 11 of text
KINDS = torch.tensor([TEXT] * 6 + [IMAGE] * 20 + [TEXT] * 4 + [VIDEO] * 9 + [TEXT] * 11)
PROMPT = len(KINDS)


def vision_view(**fields: Any) -> LayerView:
    embeddings = torch.randn(PROMPT, HIDDEN, generator=torch.Generator().manual_seed(5))
    return layer_view(PROMPT, **{"kinds": KINDS, "embeddings": embeddings} | fields)


# --- scopes ---

SCOPED = {
    "visual": [*range(6, 26), *range(30, 39)],
    "image": [*range(6, 26)],
    "video": [*range(30, 39)],
    "text": [4, 5, 26, 27, 28, 29, *range(39, 47)],
    "all": [*range(4, 47)],
}


@pytest.mark.parametrize("scope", SCOPED)
def test_a_scope_tells_which_tokens_may_halt(scope: Any) -> None:
    policy = Dash(scope=scope, keep_first=4, keep_last=3)
    assert policy.eligible(torch.arange(PROMPT), PROMPT, KINDS).nonzero().squeeze(1).tolist() == SCOPED[scope]


@pytest.mark.parametrize("scope", SCOPED)
def test_the_ratio_is_a_share_of_the_scope_and_all_others_stay(scope: Any) -> None:
    policy, view = Dash(scope=scope, keep_first=4, keep_last=3, pruning_ratio=0.6), vision_view()
    kept = policy.active_set(policy.score(view), view).tolist()
    others = set(range(PROMPT)) - set(SCOPED[scope])
    assert others <= set(kept)
    assert len(set(kept) - others) == len(SCOPED[scope]) - round(0.6 * len(SCOPED[scope]))


def test_visual_tokens_are_protected_by_neither_end_but_the_last_token_is() -> None:
    kinds = torch.tensor([IMAGE] * 10)
    policy = Dash(scope="visual", keep_first=64, keep_last=32)
    assert policy.eligible(torch.arange(10), 10, kinds).tolist() == [True] * 9 + [False]


def test_dropped_tokens_count_in_no_scope() -> None:
    kinds = KINDS.clone()
    kinds[6:16] = DROPPED
    half = {"pruning_ratio": 0.5, "keep_first": 0, "keep_last": 1}
    assert Dash(scope="visual", **half).kept(PROMPT, kinds) == 19 - round(0.5 * 19)
    assert Dash(scope="all", **half).kept(PROMPT, kinds) == 40 - round(0.5 * 39)


def test_a_ratio_of_the_prompt_is_one_of_the_tokens_in_scope() -> None:
    assert Dash(scope="visual", pruning_ratio=0.6, ratio_of="prompt").kept(PROMPT, KINDS) == int(0.4 * 29)


def test_a_later_stage_of_another_scope_does_not_count_what_the_first_halted() -> None:
    left = torch.tensor([position for position in range(PROMPT) if KINDS[position] == TEXT or position % 2])
    text = Dash(scope="text", keep_first=4, keep_last=3, pruning_ratio=0.5)
    active = left[text.active_set(torch.rand(len(left)), vision_view(positions=left))].tolist()
    assert [position for position in active if KINDS[position] != TEXT] == [
        p for p in left.tolist() if KINDS[p] != TEXT
    ]
    assert sum(position in SCOPED["text"] for position in active) == 14 - 7


# --- stages at one layer ---


def test_stages_of_scopes_apart_share_a_layer() -> None:
    policy = Progressive(
        [
            Dash(scope="image", start=4, pruning_ratio=0.8),
            Dash(scope="text", start=4, pruning_ratio=0.3),
            KeyNorm(scope="video", start=4, pruning_ratio=0.1),
            Dash(scope="visual", start=9, pruning_ratio=0.9),
        ]
    )
    first, second = place(policy, 28, vision=True)
    assert [part.scope for part in first.policies] == ["image", "text", "video"]
    assert (first.first, first.last, second.last) == (4, 4, 9)


@pytest.mark.parametrize("scopes", [("visual", "image"), ("all", "text"), ("text", "text")])
def test_stages_whose_scopes_meet_do_not(scopes: tuple[Any, Any]) -> None:
    stages = [Dash(scope=scope, start=4, pruning_ratio=ratio) for scope, ratio in zip(scopes, (0.3, 0.8), strict=True)]
    with pytest.raises(PolicyError, match="begin at layer 5"):
        place(Progressive(stages), 28, vision=True)


def test_stages_of_other_boundaries_do_not_share_a_layer() -> None:
    stages = [Dash(scope="visual", start=4), Dash(scope="text", start=4, boundary="attention")]
    with pytest.raises(PolicyError, match="begin at layer 5"):
        place(Progressive(stages), 28, vision=True)


def test_ratios_of_one_scope_may_not_fall_whatever_stands_between() -> None:
    stages = [
        Dash(scope="visual", start=4, pruning_ratio=0.8),
        Dash(scope="text", start=5, pruning_ratio=0.2),
        Dash(scope="visual", start=6, pruning_ratio=0.7),
    ]
    with pytest.raises(PolicyError, match=r"falls from 0\.8 to 0\.7"):
        Progressive(stages)


def test_scopes_in_text() -> None:
    policy = parse_policy("dash:scope=visual,pruning_ratio=0.8+dash:scope=text,pruning_ratio=0.3")
    (stage,) = place(policy, 28, vision=True)
    assert [(part.scope, part.pruning_ratio) for part in stage.policies] == [("visual", 0.8), ("text", 0.3)]


# --- attention of some tokens ---


@pytest.mark.parametrize("count", [1, 5, READERS + 9])
def test_attention_from_some_tokens_is_the_mean_of_their_rows(count: int) -> None:
    view = layer_view(120)
    readers = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:count].sort().values
    torch.testing.assert_close(attention_from(view, readers), attention_matrix(view)[:, readers].mean(dim=1))


def test_attention_of_a_wide_window() -> None:
    view = layer_view(120)
    torch.testing.assert_close(received_attention(view, 100), attention_matrix(view)[:, -100:].mean(dim=1))


def test_a_window_asks_with_kept_tokens_alone() -> None:
    policy, view = WindowAttention(scope="visual", window=32, kernel=1), vision_view()
    expected = attention_matrix(view)[:, -11:].mean(dim=(0, 1))  # of the last 32, 11 stand behind all visual tokens
    torch.testing.assert_close(policy.score(view)[:-11], expected[:-11])


# --- FastV ---


def test_fastv_is_what_the_last_token_sees_behind_two_layers() -> None:
    policy, view = FastV(), vision_view()
    assert [stage.last for stage in place(policy, 32, vision=True)] == [1]
    expected = attention_matrix(view)[:, -1].mean(dim=0)
    torch.testing.assert_close(policy.score(view), expected)
    best = sorted(SCOPED["visual"], key=lambda token: -float(expected[token]))[: 29 - round(0.5 * 29)]
    kept = policy.active_set(policy.score(view), view).tolist()
    assert kept == sorted([*best, *(KINDS == TEXT).nonzero().squeeze(1).tolist()])


# --- DART ---


def dart_naively(view: LayerView, count: int, pivots: int) -> list[int]:
    """The visual tokens that stay, in plain steps."""
    assert view.hidden_out is not None
    visual = [token for token in range(PROMPT) if view.kinds[token] > TEXT]  # type: ignore[index]
    text = [token for token in range(PROMPT) if token not in visual]
    states = view.final_norm(view.hidden_out)
    keys = view.keys()
    size = {token: float(keys[:, token].abs().sum()) for token in range(PROMPT)}
    own = sorted(visual, key=lambda token: -size[token])[:pivots]
    others = sorted(text, key=lambda token: -size[token])[:pivots]
    kept, left = list(own), [token for token in visual if token not in own]
    share = -(-(count - pivots) // (2 * pivots))
    for pivot in own + others:
        like = {token: float(torch.cosine_similarity(states[token], states[pivot], dim=0)) for token in left}
        for token in sorted(left, key=like.__getitem__)[:share]:
            kept.append(token)
            left.remove(token)
    return sorted(kept[:count])


@pytest.mark.parametrize(("ratio", "pivots"), [(0.778, 4), (0.5, 4), (0.3, 2), (0.6, 1), (0.9, 4), (0.1, 3)])
def test_dart_keeps_pivots_and_what_is_least_like_them(
    ratio: float, pivots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltahalt.policies.dart.PIVOTS", pivots)
    weight = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(2))
    view = vision_view(final_norm=lambda states: states * weight)
    policy = Dart(pruning_ratio=ratio)
    kept = [token for token in policy.active_set(policy.score(view), view).tolist() if KINDS[token] > TEXT]
    count = 29 - round(ratio * 29)
    assert len(kept) == count
    expected = dart_naively(view, count, min(pivots, 29))
    assert kept == expected


def test_dart_picks_the_earlier_of_equal_tokens() -> None:
    view = vision_view(hidden_out=torch.ones(PROMPT, HIDDEN))
    policy = Dart(pruning_ratio=0.5)
    kept = policy.active_set(policy.score(view), view).tolist()
    assert kept == policy.active_set(policy.score(view), view).tolist()
    sizes = view.keys().abs().sum(dim=(0, 2))
    pivots = sorted(SCOPED["visual"], key=lambda token: -float(sizes[token]))[:4]
    rest = [token for token in SCOPED["visual"] if token not in pivots]
    assert [token for token in kept if KINDS[token] > TEXT] == sorted([*pivots, *rest[: 15 - 4]])


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"scope": "all"}, 'use scope="visual"'),
        ({"scope": "text"}, 'use scope="visual"'),
        ({"boundary": "attention"}, 'boundary="block"'),
        ({"chunk": 4}, "chunk=1"),
    ],
)
def test_dart_refuses_settings_that_make_no_sense(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(PolicyError, match=advice):
        Dart(**settings)


# --- V2Drop ---


def test_v2drop_halts_before_layers_3_16_and_22_of_28() -> None:
    stages = place(V2Drop(), 28, vision=True)
    assert [stage.last + 1 for stage in stages] == [3, 16, 22]
    kinds = torch.tensor([IMAGE] * 400 + [TEXT] * 20)
    kept = [stage.policies[0].kept(420, kinds) for stage in stages]
    assert kept == [100, 5, 0]


def test_v2drop_scores_the_norm_of_what_a_layer_changed() -> None:
    view = vision_view()
    assert view.hidden_out is not None
    expected = [float((after - before).norm()) for after, before in zip(view.hidden_out, view.hidden_in, strict=True)]
    for stage in V2Drop().stages:
        assert stage.score(view).tolist() == pytest.approx(expected)


def test_a_cascade_hands_its_settings_to_every_stage() -> None:
    policy = V2Drop(start=1, second_start=2, third_start=4, third_ratio=0.99, scope="image", ratio_of="prompt")
    assert [(stage.start, stage.pruning_ratio) for stage in policy.stages] == [(1, 0.75), (2, 0.9875), (4, 0.99)]
    assert {(stage.scope, stage.ratio_of) for stage in policy.stages} == {("image", "prompt")}


@pytest.mark.parametrize("settings", [{"second_ratio": 0.5}, {"third_ratio": 1.01}, {"second_start": 1.5}], ids=str)
def test_a_cascade_refuses_settings_of_any_stage(settings: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        V2Drop(**settings)


# --- SparseVLM ---


def raters_naively(view: LayerView) -> list[int]:
    """Text tokens of the prompt that visual tokens are more like than to the average one."""
    assert view.kinds is not None
    assert view.embeddings is not None
    text = [token for token in range(PROMPT) if view.kinds[token] == TEXT]
    rows = [
        torch.softmax(torch.tensor([float(view.embeddings[token] @ view.embeddings[word]) for word in text]), dim=0)
        for token in range(PROMPT)
        if view.kinds[token] > TEXT
    ]
    mean = torch.stack(rows).mean(dim=0)
    return [word for word, weight in zip(text, mean, strict=True) if weight >= mean.mean()]


def test_sparsevlm_scores_what_the_raters_attend_to() -> None:
    view = vision_view()
    raters = raters_naively(view)
    assert 0 < len(raters) < 21
    for stage in SparseVLM().stages:
        torch.testing.assert_close(stage.score(view), attention_matrix(view)[:, raters].mean(dim=(0, 1)))


def test_raters_are_chosen_by_all_visual_tokens_of_the_prompt_and_rate_while_they_are_active() -> None:
    whole = vision_view()
    raters = raters_naively(whole)
    left = torch.tensor([token for token in range(PROMPT) if token % 3 or token > 40])
    view = vision_view(positions=left)
    rating = [number for number, token in enumerate(left.tolist()) if token in raters]
    assert 0 < len(rating) < len(raters)
    torch.testing.assert_close(
        TextRaters(scope="visual").score(view), attention_matrix(view)[:, rating].mean(dim=(0, 1))
    )


def test_where_no_rater_is_active_the_last_token_rates() -> None:
    whole = vision_view()
    raters = [rater for rater in raters_naively(whole) if rater < PROMPT - 1]
    embeddings = whole.embeddings.clone()  # type: ignore[union-attr]
    embeddings[-1] = -embeddings[KINDS > TEXT].sum(dim=0)  # nothing visual is like it
    left = torch.tensor([token for token in range(PROMPT) if token not in raters or KINDS[token] > TEXT])
    view = vision_view(positions=left, embeddings=embeddings)
    left = torch.tensor([token for token in left.tolist() if token not in raters_naively(view)])
    view = vision_view(positions=left, embeddings=embeddings)
    torch.testing.assert_close(TextRaters(scope="visual").score(view), attention_matrix(view)[:, -1].mean(dim=0))


def test_more_visual_tokens_than_are_held_at_once() -> None:
    kinds = torch.tensor([IMAGE] * (2 * STEP + 7) + [TEXT] * 8)
    generator = torch.Generator().manual_seed(1)
    view = layer_view(len(kinds), kinds=kinds, embeddings=torch.randn(len(kinds), HIDDEN, generator=generator))
    embeddings = view.embeddings
    assert embeddings is not None
    mean = (embeddings[kinds > TEXT] @ embeddings[kinds == TEXT].T).softmax(dim=-1).mean(dim=0)
    raters = 2 * STEP + 7 + (mean >= mean.mean()).nonzero().squeeze(1)
    expected = attention_matrix(view)[:, raters].mean(dim=(0, 1))
    torch.testing.assert_close(TextRaters(scope="visual").score(view), expected)


def test_sparsevlm_leaves_300_200_and_110_of_576() -> None:
    kinds = torch.tensor([IMAGE] * 576 + [TEXT] * 20)
    stages = place(SparseVLM(), 32, vision=True)
    assert [stage.last for stage in stages] == [2, 6, 15]
    assert [stage.policies[0].kept(596, kinds) for stage in stages] == [300, 200, 110]


@pytest.mark.parametrize("policy", [FastV(), Dart(), TextRaters(scope="visual")], ids=lambda policy: policy.name)
def test_memory_grows_with_the_prompt_and_not_with_its_square(policy: Policy) -> None:
    def largest_tensor(tokens: int) -> int:
        kinds = torch.tensor([IMAGE, TEXT] * (tokens // 2))
        view = layer_view(tokens, kinds=kinds, embeddings=torch.rand(tokens, HIDDEN))
        with Largest() as largest:
            policy.score(view)
        return largest.elements

    assert largest_tensor(4096) < 2.2 * largest_tensor(2048)
    assert largest_tensor(4096) < 4096 * 4096 / 8


def test_raters_rate_visual_tokens_only() -> None:
    with pytest.raises(PolicyError, match='use scope="visual"'):
        SparseVLM(scope="all")
