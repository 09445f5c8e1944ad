"""How many times as fast a prefill is, by the length of the prompt: a line for each policy."""

from collections.abc import Iterable
from pathlib import Path

from deltahalt.errors import InputError
from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.figures.house import COLOURS, FULL, MARKERS, check_plot, drawn
from deltahalt.lab.figures.names import legend


def speed(rows: Iterable[BenchRow], out: Path) -> None:
    """Draw the gain of single prompts in prefill time to `out`, an .svg or a .png file, and dotted that in FLOPs.

    Raises InputError as `check_plot` does, for rows of several models or machines, and where there are no single
    prompts.
    """
    check_plot(out)
    single = [row for row in rows if row.batch == 1]
    subjects = sorted({f"{row.model}, {row.dtype} on {row.machine}" for row in single})
    if not subjects:
        raise InputError("there are no rows of single prompts: run `deltahalt bench --rows` with --batch-sizes 1")
    if len(subjects) > 1:
        raise InputError(f"these are rows of several models or machines ({'; '.join(subjects)}): give rows of only one")
    policies = list(dict.fromkeys(row.policy for row in single))
    with drawn(out, subjects[0], (7.2, 4.4)) as figure:
        axes = figure.subplots()
        axes.axhline(1, **FULL)
        for place, policy in enumerate(policies):
            own = sorted((row for row in single if row.policy == policy), key=lambda row: row.prompt)
            lengths = [row.prompt for row in own]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            gains = [row.gain.prefill for row in own]
            axes.plot(lengths, gains, color=colour, marker=marker, markersize=5, label=legend(policy))
            axes.plot(lengths, [row.gain.flops for row in own], color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        ticks = sorted({row.prompt for row in single})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens in the prompt")
        axes.set_ylabel("speedup of the first token\n(dotted: of FLOPs)")
        axes.grid()
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=7)
