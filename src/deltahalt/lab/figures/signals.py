"""Comparison of scoring signals (Fig. 7): every signal on every task, at each measured start layer and ratio."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.summary import PolicySummary
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.comparison import comparable, summarize_tasks
from deltahalt.lab.figures.house import FULL, check_plot, drawn, looks
from deltahalt.policies.text import Written, parse_policy, read

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Signals in the order of their bars, by the policy's text without start layer and ratio.
SIGNALS = {
    "dash": "attention delta (dash)",
    "dash:relative=true": "relative attention delta",
    "dash-layer": "block delta (dash-layer)",
    "window-attention": "last window's attention",
    "last-token-attention": "last token's attention",
    "key-norm": "key norm",
    "random": "random",
    "uniform": "evenly spaced",
}
SETTING = ("start", "pruning_ratio")
FULL_MODEL = "full model"
Bars = Mapping[str, Mapping[str, PolicySummary]]  # summaries by signal and task


class Setting(NamedTuple):
    """A start and a ratio. Sorting puts starts that are shares of the depth before those that are layers."""

    in_layers: bool
    start: float
    ratio: float

    def title(self) -> str:
        start = f"layer {self.start}" if self.in_layers else f"{100 * self.start:g} % of the layers"
        return f"start: {start}, ratio: {self.ratio:g}"


@dataclass(frozen=True)
class Ablation:
    """The bars of one setting, a start layer and a ratio, which `title` names."""

    title: str
    bars: Bars


def signals(rows: Iterable[SweepRow], out: Path) -> None:
    """Draw bars of every signal and task to `out`, an .svg or a .png file, with a row of panels for each setting.

    Left: share of exact answers, on the tasks in which the full model has any. Right: change of the negative
    log-likelihood in nats per token. Raises InputError as `check_plot` and `ablations` do.
    """
    check_plot(out)
    title, found = ablations(rows)
    with drawn(out, title, (11, 2.6 * len(found) + 1.2)) as figure:
        grid = figure.subplots(len(found), 2, sharex="col", sharey="col", squeeze=False)
        for (left, right), ablation in zip(grid, found, strict=True):
            exact = [task for task in _tasks(ablation) if any(b[task].full_exact for b in ablation.bars.values())]
            left.set_title(ablation.title)
            left.set_ylabel("exact answers (up is better)")
            right.set_ylabel("NLL change, nats (down is better)")
            _draw(left, ablation.bars, exact, lambda line: line.exact, lambda line: line.full_exact)
            _draw(right, ablation.bars, _tasks(ablation), lambda line: line.nll_change, lambda _: 0)
        known: dict[str, Artist] = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            known |= zip(labels, handles, strict=True)
        named = [label for label in (FULL_MODEL, *SIGNALS.values()) if label in known]
        figure.legend([known[label] for label in named], named, loc="outside lower center", ncols=5, frameon=False)


def ablations(rows: Iterable[SweepRow]) -> tuple[str, list[Ablation]]:
    """Return a title, and the bars of each setting that has rows of several signals, on the samples that all have.

    Only policies without other options count. Raises InputError as `comparable` does, and if no setting has rows of
    several signals.
    """
    by_setting: dict[Setting, dict[str, str]] = {}  # policies by setting and signal
    rows = list(rows)
    for policy in dict.fromkeys(row.policy for row in rows):
        if found := _split(policy):
            signal, setting = found
            by_setting.setdefault(setting, {})[signal] = policy
    several = {setting: by_setting[setting] for setting in sorted(by_setting) if len(by_setting[setting]) > 1}
    if not several:
        raise InputError("no start layer and ratio has rows of two signals: sweep several policies at the same ones")
    shown = {policy for policies in several.values() for policy in policies.values()}
    title, chosen = comparable(row for row in rows if row.policy in shown)
    summaries = {(line.policy, task): line for task, lines in summarize_tasks(chosen).items() for line in lines}
    tasks = list(dict.fromkeys(task for _, task in summaries))
    return title, [
        Ablation(setting.title(), {s: {task: summaries[own[s], task] for task in tasks} for s in SIGNALS if s in own})
        for setting, own in several.items()
    ]


def _split(policy: str) -> tuple[str, Setting] | None:
    """Return a policy's signal, start and ratio; None for a policy with other options or several stages."""
    first, *more = read(policy)
    others = {name: value for name, value in first.options.items() if name not in SETTING}
    signal = str(Written(first.name, others))
    if signal not in SIGNALS or more:
        return None
    (parsed,) = parse_policy(policy).stages
    return signal, Setting(isinstance(parsed.start, int), parsed.start, parsed.pruning_ratio)


def _tasks(ablation: Ablation) -> list[str]:
    return list(next(iter(ablation.bars.values())))


def _draw(
    axes: "Axes",
    bars: Bars,
    tasks: Sequence[str],
    value: Callable[[PolicySummary], float],
    full: Callable[[PolicySummary], float],
) -> None:
    """Draw a group of bars for each task, and the full model as a line across each group."""
    known, width = looks(bars), 0.84 / len(bars)
    for place, (signal, lines) in enumerate(bars.items()):
        axes.bar(
            [group - 0.42 + (place + 0.5) * width for group in range(len(tasks))],
            [value(lines[task]) for task in tasks],
            width,
            color=known[read(signal)[0].name].get_color(),
            hatch="////" if read(signal)[0].options else None,
            edgecolor="white",
            linewidth=0.4,
            label=SIGNALS[signal],
        )
    level = [full(next(iter(bars.values()))[task]) for task in tasks]
    begin = [group - 0.46 for group in range(len(tasks))]
    axes.hlines(level, begin, [at + 0.92 for at in begin], **FULL, label=FULL_MODEL)
    axes.set_xticks(range(len(tasks)), [task.replace("_", "\n", 1) for task in tasks])
    axes.grid(axis="y")
