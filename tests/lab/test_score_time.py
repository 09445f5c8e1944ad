"""Figure 6: score against time, from rows of `deltahalt eval`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from deltahalt import InputError
from deltahalt.lab.figures.score_time import compare, score_time
from deltahalt.lab.rows.base import append_rows
from deltahalt.lab.rows.eval import EvalRow

DASH, KEYS = "dash:start=11,pruning_ratio=0.667", "key-norm:start=7,pruning_ratio=0.5"


def row(policy: str, task: str = "qa", metric: str = "f1", **values: Any) -> EvalRow:
    plain = EvalRow(
        task=task,
        metric=metric,
        value=0.5,
        stderr=None,
        samples=10,
        seconds=100.0,
        model="small",
        policy=policy,
        halted_kv="drop",
        min_prompt_tokens=0,
        chat_template=False,
        batch_size=1,
        max_length=4096,
        dtype="float32",
        device="cpu",
        machine="one CPU",
        processes=1,
        seed=0,
        version="1",
        deltahalt="0",
        lm_eval="0",
        transformers="5",
        torch="2",
        prefill_seconds=5.0,
        generation_seconds=15.0,
        prompt_tokens=1000,
        new_tokens=100,
        peak_bytes=None,
    )
    return replace(plain, **values)


ROWS = [
    row("dense", value=0.6, generation_seconds=35.0),
    row("dense", "news", "rouge", value=0.4, generation_seconds=75.0, samples=20),
    row(DASH, value=0.5),
    row(DASH, "news", "rouge", value=0.2, generation_seconds=55.0, samples=20),
    row(KEYS, value=0.3, generation_seconds=5.0),
    row(KEYS, "news", "rouge", value=0.1, generation_seconds=35.0, samples=20),
]


def test_tasks_weigh_the_same_in_score_and_in_time() -> None:
    title, panel = compare(ROWS)
    assert title == "small, float32 on one CPU, up to 4096 tokens, batches of 1"
    assert "2 tasks: news, qa" in panel.title
    spots = {point.policy: panel.spot(point) for point in panel.points}
    assert spots == {DASH: pytest.approx((2.5, 0.35)), KEYS: pytest.approx((1.5, 0.2))}
    assert panel.full == pytest.approx(0.5)
    assert panel.full_speed == pytest.approx(-4)


def test_metrics_of_a_task_are_one_score_and_the_task_s_seconds_count_once() -> None:
    more = [row(policy, "qa", "recall", value=0.7, prefill_seconds=99.0) for policy in (DASH, KEYS)]
    _, panel = compare([*(one for one in ROWS if one.policy != "dense"), *more])
    spots = {point.policy: panel.spot(point) for point in panel.points}
    assert spots[DASH] == pytest.approx((2.5, ((0.5 + 0.7) / 2 + 0.2) / 2))


def test_tasks_without_rows_of_every_policy_do_not_count_and_of_equal_rows_the_last_does() -> None:
    rows = [replace(ROWS[2], value=0.9), *ROWS, row(DASH, "code", value=1.0)]
    assert compare(rows) == compare(ROWS)


def test_the_first_process_has_its_share_of_the_samples() -> None:
    _, panel = compare([row(DASH, processes=4)])
    assert panel.spot(panel.points[0])[0] == pytest.approx(20 / 3)


def test_tasks_may_differ_in_how_all_policies_ran_them() -> None:
    rows = [replace(one, chat_template=True, batch_size=4) if one.task == "news" else one for one in ROWS]
    title, panel = compare(rows)
    assert title.endswith("batches of 1 or 4")
    assert panel == compare(ROWS)[1]


def test_the_title_says_who_ran_with_other_versions() -> None:
    rows = [
        replace(ROWS[0], transformers="4"),  # not drawn: a later row of the same counts
        *(replace(one, transformers="4") if one.policy == KEYS else one for one in ROWS),
    ]
    assert compare(rows)[0].endswith("batches of 1, transformers 5 (key-norm 4)")
    rows = [replace(one, torch="1", transformers="4") if one.policy == "dense" else one for one in ROWS]
    assert compare(rows)[0].endswith("transformers 5 (dense 4), torch 2 (dense 1)")


def test_without_the_full_model_there_is_no_line() -> None:
    _, panel = compare(ROWS[2:])
    assert panel.full_speed is None
    assert panel.full != panel.full


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows of a policy that halts"),
        (ROWS[:2], "no rows of a policy that halts"),
        ([*ROWS, row(DASH, model="large")], "several models or settings"),
        ([*(replace(one, model="large") for one in ROWS), *ROWS], "several models or settings"),
        ([*ROWS, row(DASH, machine="one GPU")], "several models or settings"),
        ([*ROWS, row(DASH, attention="eager", halted_kv="frozen")], "halted K/V frozen, attention by eager"),
        ([*ROWS, row(DASH, chat_template=True)], f"^{DASH} ran qa on other samples.* than dense, or.* chat"),
        ([*ROWS, row(KEYS, batch_size=4), row(DASH, batch_size=4)], f"^{DASH}, {KEYS} ran qa .*batch sizes"),
        ([row(DASH, "a"), row(KEYS, "b")], "no task has rows of every policy"),
        ([*ROWS, row(DASH, metric="perplexity", value=12.5)], "perplexity of qa is 12.5"),
        ([*ROWS[2:], row(DASH, new_tokens=0)], "qa generates no answers"),
        ([*ROWS[2:], row(KEYS, samples=3)], f"^{KEYS} ran qa on other samples.* than {DASH}"),
        ([*ROWS, row(DASH, metric="recall")], "ran qa on other samples, metrics"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows: list[EvalRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        score_time(rows, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_left_and_up_is_better_and_the_full_model_is_where_two_lines_cross(
    figures: list[Figure], tmp_path: Path
) -> None:
    score_time(ROWS, tmp_path / "plot.svg")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert [list(values) for values in lines["frontier"].get_data()] == [[2.5, 1.5], pytest.approx([0.35, 0.2])]
    assert list(lines["full model"].get_ydata()) == pytest.approx([0.5, 0.5])
    assert any(list(line.get_xdata()) == pytest.approx([4, 4]) for line in axes.lines if len(line.get_xdata()) == 2)
    assert not axes.xaxis_inverted()
    assert not axes.yaxis_inverted()


def test_labels_keep_off_the_full_model_s_lines(figures: list[Figure], tmp_path: Path) -> None:
    near = [row("dense", value=0.6), row("dash", prefill_seconds=4.9), row("key-norm", value=0.4, prefill_seconds=4.8)]
    far = row("random", value=0.1, prefill_seconds=25.0)
    score_time([*near, far], tmp_path / "plot.svg")
    (axes,) = figures[0].axes
    assert {text.get_text() for text in axes.texts} == {"dash", "key-norm"}
    place, level = axes.transData.transform((2, 0.6))
    for text in axes.texts:
        box = Text.get_window_extent(text)
        assert not box.x0 < place < box.x1
        assert not box.y0 < level < box.y1


def test_plot_draws_it(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", ROWS)
    for out in ("one.svg", "two.svg"):
        assert deltahalt("plot", tmp_path / "rows.jsonl", "--figure", "score-time", "--out", tmp_path / out) == 0
    drawn = (tmp_path / "one.svg").read_text()
    assert ">seconds an answer, prefill and generation (left is better)</text>" in drawn
    assert drawn == (tmp_path / "two.svg").read_text()
