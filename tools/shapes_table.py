"""What policies keep where the question stands in many places: on shapes of prompts, and on real documents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean, stdev

from deltahalt.lab.evaluation.shapes.registry import SHAPES
from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.evaluation.shapes.summary import ALL, ShapeSummary, difference, summarize
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.rows.markdown import table
from deltahalt.profile import shipped
from deltahalt.profile_names import AUTO, AUTO_QUERY_FREE

FULL = "full model"
# Where the question stands in prompts of recipes/real_prompts.py, by how the names of their tasks end or begin.
PLACES: dict[str, Callable[[str], bool]] = {
    "all prompts": lambda _: True,
    "question last": lambda task: task.endswith("/last"),
    "question first": lambda task: task.endswith("/first"),
    "instructions after it": lambda task: task.endswith("/tail"),
    "MiniLongBench": lambda task: task.startswith("lb-"),
}


def shapes_table(rows: Sequence[ShapeRow]) -> str:
    """Right answers by shape and policy, a column each; then their share, its change, and that of the NLL.

    A shape that the full model cannot do stands in brackets: it is not in the share.
    """
    lines = summarize(rows)
    policies = list(dict.fromkeys(line.policy for line in lines))
    by_place = {(line.shape, line.policy): line for line in lines}
    shapes = [shape for shape in SHAPES if (line := by_place.get((shape, policies[0]))) and line.full is not None]
    first = [by_place[shape, policies[0]] for shape in shapes]
    total = [by_place[ALL, policy] for policy in policies]
    names = [line.shape if line.counts else f"({line.shape})" for line in first]
    counted = sum(line.prompts for line in first if line.counts)
    ends = ["**right answers**", "**change**", "**NLL change**"]
    columns = {
        "shape": names + ends,
        "prompts": [f"{line.prompts}" for line in first] + [f"{counted}", "", ""],
    }
    columns[FULL] = [_right(line.full, line) for line in first] + [_percent(total[0].full), "", ""]
    heads = _heads(rows[0].model, ((line.policy, line.reference_speedup) for line in total))
    for policy, own, head in zip(policies, total, heads, strict=True):
        right = [_right(by_place[shape, policy].score, by_place[shape, policy]) for shape in shapes]
        columns[head] = [*right, _percent(own.score), difference(own), f"{own.nll[0]:+.2f} ± {own.nll[1]:.2f}"]
    return table(columns)


def _right(share: float | None, line: ShapeSummary) -> str:
    """The sum of the scores, of which 1 is a right answer."""
    return "" if share is None else f"{share * line.prompts:.1f}".removesuffix(".0")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def real_table(rows: Sequence[SweepRow]) -> str:
    """The change of the NLL of right answers, nats a token, with its standard error, by policy and question's place."""
    by_policy: dict[str, list[SweepRow]] = {}
    for row in sorted(rows, key=lambda row: round(row.reference_speedup, 1)):
        by_policy.setdefault(row.policy, []).append(row)
    first = next(iter(by_policy.values()))
    heads = {place: sum(map(inside, (row.task for row in first))) for place, inside in PLACES.items()}
    speeds = ((policy, own[0].reference_speedup) for policy, own in by_policy.items())
    return table(
        {
            "policy": list(_heads(rows[0].model, speeds)),
            **{
                f"{place} ({heads[place]})": [
                    _mean([row.nll - row.full_nll for row in own if inside(row.task)]) for own in by_policy.values()
                ]
                for place, inside in PLACES.items()
            },
        }
    )


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):+.2f} ± {stdev(values) / len(values) ** 0.5:.2f}"


def _heads(model: str, speeds: Iterable[tuple[str, float]]) -> Iterator[str]:
    """For each policy its name and speed; what a profile of the model chose is called by what a user writes."""
    chosen = {
        choice.policy: (AUTO_QUERY_FREE if profile.query_free else AUTO) + (f":{choice.speedup:.1f}" if number else "")
        for profile in shipped()
        if profile.model == model
        for number, choice in enumerate(profile.choices)
    }
    for policy, speedup in speeds:
        yield f"`{chosen.get(policy, policy.partition(':')[0])}` {speedup:.1f}x"
