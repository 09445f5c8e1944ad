"""Rows of `vision-sweep` as tables in the form of the DASH paper's Tables 5 and 6."""

from collections.abc import Sequence
from statistics import fmean

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
    reference = {kind: share for kind, share in accuracy(full).items() if share}
    if not reference:
        raise InputError(
            f"the full {full.model} answers no question right, so nothing can be relative to it: give another model"
        )
    return 100 * fmean(accuracy(row)[kind] / share for kind, share in reference.items())


def full_of(row: VisionRow, rows: Sequence[VisionRow]) -> VisionRow:
    """Return the full model's row on the same pictures. Raises InputError if there is none."""
    for other in rows:
        if other.method == FULL.method and (other.model, other.pictures) == (row.model, row.pictures):
            return other
    raise InputError(f"there is no row of the full {row.model} on {row.pictures} pictures: measure it too")


def markdown(rows: Sequence[VisionRow]) -> str:
    """Return two Markdown tables: ADR (see `adr`) of each method at each share of visual tokens, and all figures."""
    relative = [(row, f"{adr(row, full_of(row, rows)):.1f}") for row in rows]
    return f"{_overview(relative)}\n\n{_details(relative)}"


def _overview(relative: Sequence[tuple[VisionRow, str]]) -> str:
    """Return the table of ADR by method and share. relative: rows, each with its ADR."""
    cells = {(row.model, row.method, row.retain): shown for row, shown in relative if row.method != FULL.method}
    retains = sorted({retain for *_, retain in cells}, reverse=True)
    lines = list(dict.fromkeys((model, method) for model, method, _ in cells))
    columns = {f"{100 * retain:g} %": [cells.get((*line, retain), "") for line in lines] for retain in retains}
    return table({"model": [model for model, _ in lines], "method": [f"`{method}`" for _, method in lines], **columns})


def _details(relative: Sequence[tuple[VisionRow, str]]) -> str:
    by_share = sorted(relative, key=lambda pair: -pair[0].retain)
    ordered = [row for row, _ in by_share]
    kinds = list(dict.fromkeys(kind for row, _ in relative for kind in row.asked))
    shares = [accuracy(row) for row in ordered]
    return table(
        {
            "model": [row.model for row in ordered],
            "method": [f"`{row.method}`" for row in ordered],
            "share": [f"{100 * row.retain:g} %" for row in ordered],
            "kept": [f"{100 * row.kept:.1f} %" for row in ordered],
            "ViT FLOPs": [f"{100 * row.vision_flops:.0f} %" for row in ordered],
            "LLM FLOPs": [f"{100 * row.flops:.0f} %" for row in ordered],
            **{kind: [f"{own[kind]:.0f}" if kind in own else "" for own in shares] for kind in kinds},
            "mean": [f"{fmean(own.values()):.1f}" for own in shares],
            "ADR": [shown for _, shown in by_share],
        }
    )
