"""Rows of `vision-sweep` as tables: two in the form of the DASH paper's Tables 5 and 6, and one of paired changes."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.pictures.combinations import FULL
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.rows.markdown import table


def accuracy(row: VisionRow) -> dict[str, float]:
    """Return the share of right answers for each kind of question, in percent."""
    return {kind: 100 * row.right[kind] / asked for kind, asked in row.asked.items()}


def adr(row: VisionRow, full: VisionRow) -> float:
    """Return the accuracy as a share of the full model's, mean over the kinds of questions, in percent.

    Kinds that the full model never answers right are left out. Raises InputError if that leaves none.
    """
    require_answers(full)
    reference = {kind: share for kind, share in accuracy(full).items() if share}
    return 100 * fmean(accuracy(row)[kind] / share for kind, share in reference.items())


def require_answers(full: VisionRow) -> None:
    """Raise InputError if the full model answers no question right, since nothing can be relative to it."""
    if not any(full.right.values()):
        instead = "ask after it, or give another model" if full.question == "before" else "give another model"
        raise InputError(
            f"the full {full.model} answers no question right when it stands {full.question} the picture, so nothing "
            f"can be relative to it: {instead}"
        )


def full_of(row: VisionRow, rows: Sequence[VisionRow]) -> VisionRow:
    """Return the full model's row on the same pictures and questions. Raises InputError if there is none."""
    for other in rows:
        if other.method == FULL.method and _asked(other) == _asked(row):
            return other
    raise InputError(
        f"there is no row of the full {row.model} on these {row.pictures} pictures with the question {row.question} "
        "the picture: measure it too"
    )


def _asked(row: VisionRow) -> tuple[str, int, int, str]:
    return row.model, row.pictures, row.skip, row.question


def markdown(rows: Sequence[VisionRow]) -> str:
    """Return two Markdown tables: ADR (see `adr`) of each method at each share of visual tokens, and all figures."""
    relative = [(row, f"{adr(row, full_of(row, rows)):.1f}") for row in rows]
    return f"{_overview(relative)}\n\n{_details(relative)}"


def beside(rows: Sequence[VisionRow]) -> str:
    """Return a Markdown table of what each method changes, from the rows that have results by picture.

    A change is the mean over pictures, with its standard error. A line without one is the full model's.
    """
    own = [row for row in rows if row.by_picture]
    full = [full_of(row, own) for row in own]
    pairs = list(zip(own, full, strict=True))
    return table(
        {
            "question": [row.question for row in own],
            "method": [f"`{row.method}`" for row in own],
            "LLM FLOPs": [f"{100 * row.flops:.0f} %" for row in own],
            "visual tokens": [f"{100 * row.kept:.0f} %" for row in own],
            "questions": [f"{sum(row.asked.values())}" for row in own],
            "right, %": [f"{100 * sum(row.by_picture) / sum(row.asked.values()):.1f}" for row in own],
            "change, points": [_change(row, whole, _exact, 1) for row, whole in pairs],
            "NLL change": [_change(row, whole, lambda one: one.nll, 3) for row, whole in pairs],
        }
    )


def _exact(row: VisionRow) -> list[float]:
    """Return the percentage of right answers about each picture."""
    questions = sum(row.asked.values()) / row.pictures
    return [100 * right / questions for right in row.by_picture]


def _change(row: VisionRow, full: VisionRow, by_picture: Callable[[VisionRow], Sequence[float]], digits: int) -> str:
    """Return the mean difference over pictures and its standard error; nothing for the full model itself."""
    if row is full:
        return ""
    apart = [own - other for own, other in zip(by_picture(row), by_picture(full), strict=True)]
    return f"{fmean(apart):+.{digits}f} ± {stdev(apart) / math.sqrt(len(apart)):.{digits}f}"


def _overview(relative: Sequence[tuple[VisionRow, str]]) -> str:
    """Return the table of ADR by method and share. relative: rows, each with its ADR."""
    cells = {(row.model, row.method, row.retain): shown for row, shown in relative if row.method != FULL.method}
    retains = sorted({retain for *_, retain in cells}, key=lambda retain: -(retain or 0))
    lines = list(dict.fromkeys((model, method) for model, method, _ in cells))
    columns = {_share(retain): [cells.get((*line, retain), "") for line in lines] for retain in retains}
    return table({"model": [model for model, _ in lines], "method": [f"`{method}`" for _, method in lines], **columns})


def _share(retain: float | None) -> str:
    return "own" if retain is None else f"{100 * retain:g} %"


def _details(relative: Sequence[tuple[VisionRow, str]]) -> str:
    by_share = sorted(relative, key=lambda pair: -(pair[0].retain or 0))
    ordered = [row for row, _ in by_share]
    kinds = list(dict.fromkeys(kind for row, _ in relative for kind in row.asked))
    shares = [accuracy(row) for row in ordered]
    return table(
        {
            "model": [row.model for row in ordered],
            "method": [f"`{row.method}`" for row in ordered],
            "share": [_share(row.retain) for row in ordered],
            "kept": [f"{100 * row.kept:.1f} %" for row in ordered],
            "ViT FLOPs": [f"{100 * row.vision_flops:.0f} %" for row in ordered],
            "LLM FLOPs": [f"{100 * row.flops:.0f} %" for row in ordered],
            **{kind: [f"{own[kind]:.0f}" if kind in own else "" for own in shares] for kind in kinds},
            "mean": [f"{fmean(own.values()):.1f}" for own in shares],
            "ADR": [shown for _, shown in by_share],
        }
    )
