"""vLLM with halting beside stock vLLM: gain in time until the first token by prompt length, and requests per second."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltahalt.errors import InputError
from deltahalt.lab.bench.serving import STOCK, ServingRow
from deltahalt.lab.figures.house import COLOURS, FULL, MARKERS, check_plot, drawn
from deltahalt.lab.figures.names import legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ByPrompt = Mapping[int, float]  # by the number of tokens in the prompt, shortest first


@dataclass(frozen=True)
class Served:
    """What is compared, by policy.

    gains: how many times as fast as in stock vLLM the first token comes. rates: requests finished per second, of stock
    vLLM first; empty where none were measured. load: the requests of the rates, as text; "" without rates.
    """

    title: str
    gains: Mapping[str, ByPrompt]
    rates: Mapping[str, ByPrompt]
    load: str


def serving(rows: Iterable[ServingRow], out: Path) -> None:
    """Draw what policies gain in vLLM to `out`, an .svg or a .png file.

    Left: how many times as fast as in stock vLLM the first token of one prompt comes. Right, where it was measured:
    requests finished per second. Raises InputError as `check_plot` and `compare` do.
    """
    check_plot(out)
    served = compare(rows)
    panels = 2 if served.rates else 1
    with drawn(out, served.title, (9.6 if served.rates else 7.2, 4.2)) as figure:
        left, *right = figure.subplots(1, panels, squeeze=False, width_ratios=(3, 2)[:panels])[0]
        _draw_gains(left, served)
        for axes in right:
            _draw_rates(axes, served)
        figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)


def compare(rows: Iterable[ServingRow]) -> Served:
    """Return the gains and rates of all policies beside stock vLLM.

    A policy's row counts if stock vLLM has one of the same prompt length and settings: model, dtype, machine, vLLM's
    version, GPUs, HTTP and mode. All others are left out, and so are rows with a set memory for K and V. Of rows of the
    same policy, prompt length and settings, the last counts.

    Raises InputError if no row counts, and if those that do are of several settings, or of different requests at once.
    """
    latest = {(_subject(row), row.prompt, row.policy): row for row in rows if row.gibibytes is None}
    beside = [(row, latest.get((subject, prompt, STOCK))) for (subject, prompt, _), row in latest.items()]
    pairs = [(row, stock) for row, stock in beside if stock is not None and row is not stock]
    subjects = sorted({_subject(row) for row, _ in pairs})
    if not subjects:
        raise InputError(
            "there are no rows of a policy and of stock vLLM on the same prompts: run `deltahalt bench-vllm --rows`"
        )
    if len(subjects) > 1:
        raise InputError(f"these are rows of several models or settings ({'; '.join(subjects)}): give rows of only one")
    rated = [(row, row.per_second) for pair in pairs for row in pair if row.per_second is not None]
    loads = sorted({f"{row.requests} at once, {row.new_tokens} new tokens each" for row, _ in rated})
    if len(loads) > 1:
        raise InputError(f"these are rows of different requests ({'; '.join(loads)}): give rows of only one load")
    policies = list(dict.fromkeys(row.policy for row, _ in pairs))
    gains = [(row, stock.first_token / row.first_token) for row, stock in pairs]
    return Served(subjects[0], _by_policy(policies, gains), _by_policy([STOCK, *policies], rated), "".join(loads))


def _subject(row: ServingRow) -> str:
    """Return what a figure is about: the model, the machine, vLLM's version, and settings that are not the usual."""
    settings = {
        f"{row.gpus} GPUs": row.gpus != 1,
        "over HTTP": row.http,
        f"mode {row.mode}": row.mode != "default",
    }
    others = [text for text, unusual in settings.items() if unusual]
    return ", ".join([f"{row.model}, {row.dtype} on {row.machine}", f"vLLM {row.vllm}", *others])


def _by_policy(policies: Iterable[str], values: Sequence[tuple[ServingRow, float]]) -> dict[str, ByPrompt]:
    """Return the values of each policy that has any, by the length of the prompt."""
    own = {policy: {row.prompt: value for row, value in values if row.policy == policy} for policy in policies}
    return {policy: dict(sorted(found.items())) for policy, found in own.items() if found}


def _draw_gains(axes: "Axes", served: Served) -> None:
    """Draw a line for each policy, and one at 1 for stock vLLM."""
    axes.axhline(1, **FULL, label=STOCK)
    for place, (policy, gains) in enumerate(served.gains.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.plot(list(gains), list(gains.values()), color=colour, marker=marker, markersize=5, label=legend(policy))
    axes.set_xscale("log", base=2)
    ticks = sorted({prompt for gains in served.gains.values() for prompt in gains})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the prompt")
    axes.set_ylabel("times as fast as stock vLLM\nuntil the first token")
    axes.grid()


def _draw_rates(axes: "Axes", served: Served) -> None:
    """Draw a group of bars for each prompt length, in the colours of the lines."""
    colours = {policy: COLOURS[place % len(COLOURS)] for place, policy in enumerate(served.gains)}
    prompts = sorted({prompt for rates in served.rates.values() for prompt in rates})
    width = 0.84 / len(served.rates)
    for place, (policy, rates) in enumerate(served.rates.items()):
        axes.bar(
            [prompts.index(prompt) - 0.42 + (place + 0.5) * width for prompt in rates],
            list(rates.values()),
            width,
            color=colours.get(policy, FULL["color"]),
            edgecolor="white",
            linewidth=0.4,
        )
    axes.set_xticks(range(len(prompts)), [f"{prompt:,}" for prompt in prompts])
    axes.set_xlim(-0.7, len(prompts) - 0.3)
    axes.set_xlabel("tokens in the prompt")
    axes.set_ylabel(f"requests finished per second\n({served.load})")
    axes.grid(axis="y")
