"""Rules that rate generated answers: what they accept and what they reject."""

import pytest

from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.rules import Begins, Ends, make_rule, shouted
from deltahalt.lab.evaluation.shapes.scorers import Counts, Names, NamesAll, Quotes


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("48213", "The locker has the number 48213."),
        ("48213", "It is **48,213** crowns."),
        ("48213", "48213"),
        ("KX-4821", "The code is `kx-4821`."),
        ("Agnes Harzak", 'It was "Agnes\nHarzak", the engineer.'),
        ("14 March 1987", "On 14 March 1987, in the afternoon."),
        ("duplicate_auction", '{"name": "duplicate_auction"}'),
        ("朱红色", "屋顶是朱红色的。"),
    ],
)
def test_a_right_answer_is_accepted(wanted: str, said: str) -> None:
    assert Names(wanted)(said) == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("48213", "It is 148213."),
        ("48213", "It is 482131."),
        ("48213", "It is 48,2131."),
        ("KX-4821", "KX-4822"),
        ("Agnes Harzak", "Agnes Harzakin"),
        ("Agnes Harzak", "Harzak, Agnes"),
        ("14 March 1987", "4 March 1987"),
        ("felt", "He felted it."),
        ("朱红色", "屋顶是紫色的。"),
    ],
)
def test_a_wrong_answer_is_rejected(wanted: str, said: str) -> None:
    assert Names(wanted)(said) == 0


def test_an_answer_that_hedges_is_rejected() -> None:
    assert Names("48213", ("11111",))("Either 48213 or 11111.") == 0
    assert Names("48213", ("11111",), also=("forty-eight",))("forty-eight") == 1


def test_parts_of_an_answer_count() -> None:
    assert NamesAll(("48213", "Agnes", "felt"))("Agnes has 48213.") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "said", ["4", "There are four notes.", "Notes 17234 and 28123 ... so 4.", "1. a\n2. b\n3. c\n4. d", "4 (of 12345)"]
)
def test_a_right_count(said: str) -> None:
    assert Counts(4)(said) == 1


@pytest.mark.parametrize("said", ["", "none", "5", "14", "It is 4.5", "forty", "4, or rather 5", "17234"])
def test_a_wrong_count(said: str) -> None:
    assert Counts(4)(said) == 0


def test_quoted_lines_count_in_order() -> None:
    quotes = Quotes(("def f():", "    a = 1", "", "    b = 2", "    return a"))
    assert quotes("```python\ndef f():\n    a = 1\n\n    b = 2\n    return a\n```") == 1
    assert quotes("def f():\na = 1\nb = 2\nreturn a") == 1
    assert quotes("def f():\n    a = 1\n    b = 3\n    return a") == 0.75
    assert quotes("    return a\n    b = 2\n    a = 1\ndef f():") == 0.25
    assert quotes("I cannot quote it.") == 0


def test_rules_are_checked() -> None:
    assert Begins("Dear colleague KX-1")("**Dear colleague KX-1**, it is felt.")
    assert not Begins("Dear colleague")("It is felt, dear colleague.")
    assert Ends("Ref. KX-1")("It is felt.\n\nRef. KX-1\n")
    assert not Ends("Ref. KX-1")("Ref. KX-1\nIt is felt.")
    assert not Ends("Ref. KX-1")("")
    assert shouted("IT IS 48213.")
    assert not shouted("It is 48213.")
    assert not shouted("48213")


def test_every_rule_can_be_obeyed_and_broken() -> None:
    for seed in range(60):
        rule = make_rule(Draw("rules", seed))
        assert rule.obeyed(rule.obey("It is felt."))
        assert not rule.obeyed("It is felt.")
