"""What a plot of accuracy against speed compares, and what is on the frontier."""

import math
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahalt import InputError
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.comparison import Point, compare, frontier
from deltahalt.lab.figures.pareto import pareto
from helpers.sweep_rows import DASH, KEYS, ROWS, row


def points(*values: tuple[float, float]) -> list[Point]:
    return [Point(f"policy {index}", *value) for index, value in enumerate(values)]


def test_a_point_that_another_beats_is_not_on_the_frontier() -> None:
    fast, good, beaten = points((2.0, 0.5), (1.5, 0.9), (1.4, 0.4))
    for order in permutations([fast, good, beaten]):
        assert frontier(order) == [good, fast]


@pytest.mark.parametrize("worse", [(2.0, 0.4), (1.9, 0.5)])
def test_a_tie_in_one_is_decided_by_the_other(worse: tuple[float, float]) -> None:
    better, beaten = points((2.0, 0.5), worse)
    assert frontier([better, beaten]) == frontier([beaten, better]) == [better]


def test_equal_points_stay_on_the_frontier_together() -> None:
    equal = points((2.0, 0.5), (2.0, 0.5))
    assert set(frontier(equal)) == set(equal)


def test_one_point_is_the_frontier_and_no_points_have_none() -> None:
    assert frontier(points((1.0, -2.0))) == points((1.0, -2.0))
    assert frontier([]) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_frontier_is_what_no_point_beats(values: list[tuple[int, int]]) -> None:
    given_points = points(*values)
    unbeaten = {
        point.policy
        for point in given_points
        if not any(
            other.speed >= point.speed
            and other.quality >= point.quality
            and (other.speed, other.quality) != (point.speed, point.quality)
            for other in given_points
        )
    }
    best = frontier(given_points)
    assert {point.policy for point in best} == unbeaten
    assert [point.speed for point in best] == sorted(point.speed for point in best)


def test_tasks_weigh_the_same_and_exactness_counts_where_the_full_model_is_exact() -> None:
    rows = [
        row(DASH, "a", "needle", exact=True, nll=2.0),
        row(DASH, "b", "needle", exact=False, nll=2.0),
        row(DASH, "c", "needle", exact=False, nll=2.0, full_exact=False),
        row(DASH, "d", "lookup", exact=True, nll=3.0),
        row(DASH, "e", "summary", exact=True, nll=1.5, full_exact=False),
    ]
    exact, change = compare(rows).panels
    assert "needle" in exact.title
    assert "summary" not in exact.title
    assert exact.full == pytest.approx((2 / 3 + 1) / 2)
    assert exact.points == [Point(DASH, 2.0, pytest.approx((1 / 3 + 1) / 2))]
    assert change.full == 0
    assert change.points == [Point(DASH, 2.0, pytest.approx(-(1 + 2 + 0.5) / 3))]


def test_a_row_given_twice_counts_once() -> None:
    rows = [row(DASH, "a", nll=2.0), row(DASH, "b", nll=1.0)]
    assert compare([*rows, rows[0]]) == compare(rows)


def test_policies_are_compared_on_the_same_samples_and_the_title_says_so() -> None:
    rows = [row(DASH, "a", nll=2.0), row(KEYS, "a", nll=1.5), row(DASH, "b", nll=9.0)]
    comparison = compare(rows)
    assert comparison.panels == compare(rows[:2]).panels
    assert "n = 1 of 2" in comparison.title


def test_the_title_says_how_the_model_was_run_if_not_as_usual() -> None:
    rows = [row(DASH, halted_kv="frozen", query_free=True)]
    assert compare(rows).title == "small, halted K/V frozen, query-free, n = 1"
    rows = [row(DASH, max_answer_tokens=9, dtype="bfloat16")]
    assert compare(rows).title == "small, answers up to 9 tokens, bfloat16, n = 1"


def test_a_row_from_before_the_format_was_told_is_of_any() -> None:
    rows = [row(DASH, nll=2.0), row(KEYS, dtype="bfloat16"), row("dense", dtype="float32")]
    assert compare(rows).title == "small, bfloat16, n = 1"
    assert compare([*rows, row(DASH, dtype="bfloat16")]) == compare([row(DASH, dtype="bfloat16"), *rows[1:]])


def test_the_full_model_is_a_line_and_no_point() -> None:
    for panel in compare(ROWS).panels:
        assert "dense" not in {point.policy for point in panel.points}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows of a policy that halts"),
        (ROWS[:1], "no rows of a policy that halts"),
        ([row(DASH), row(DASH, model="large")], r"several models or settings \(large; small\)"),
        ([row(DASH), row(DASH, halted_kv="frozen")], "halted K/V frozen"),
        ([row(DASH), row(DASH, query_free=True)], "query-free"),
        ([row(DASH), row(DASH, max_answer_tokens=9)], "answers up to 9 tokens"),
        ([row(DASH, dtype="bfloat16"), row(DASH, dtype="float32")], "small, bfloat16; small, float32"),
        ([row(DASH, "a"), row(KEYS, "b")], "no sample has rows of every policy"),
        ([row(DASH, nll=math.nan)], f"NLL of {DASH} on sample a"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows: list[SweepRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        pareto(rows, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())
