"""All kinds of rows, and the function that makes a table of each."""

from collections.abc import Callable, Sequence
from typing import Any

from deltahalt.lab.bench.agreement import AgreementRow
from deltahalt.lab.bench.agreement import markdown as agreement_table
from deltahalt.lab.bench.decode import DecodeRow
from deltahalt.lab.bench.decode import markdown as decode_table
from deltahalt.lab.bench.long_prompts import LongPromptRow
from deltahalt.lab.bench.long_prompts import markdown as long_prompts_table
from deltahalt.lab.bench.new_lengths import NewLengthsRow
from deltahalt.lab.bench.new_lengths import markdown as new_lengths_table
from deltahalt.lab.bench.profile import ProfileRow
from deltahalt.lab.bench.profile import markdown as profile_table
from deltahalt.lab.bench.readout import ReadoutRow
from deltahalt.lab.bench.readout import markdown as readout_table
from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.bench.serving import ServingRow
from deltahalt.lab.bench.serving import markdown as serving_table
from deltahalt.lab.bench.table import markdown as bench_table
from deltahalt.lab.evaluation.observe import Observation
from deltahalt.lab.evaluation.observe import markdown as observe_table
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.table import markdown as vision_table
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.evaluation.readout.summary import markdown as embed_table
from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.evaluation.shapes.summary import markdown as shapes_table
from deltahalt.lab.evaluation.summary import markdown as sweep_table
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.harness.table import markdown as eval_table
from deltahalt.lab.rows.base import Row
from deltahalt.lab.rows.eval import EvalRow

KINDS: dict[type[Row], Callable[[Any], str]] = {
    BenchRow: bench_table,
    NewLengthsRow: new_lengths_table,
    DecodeRow: decode_table,
    LongPromptRow: long_prompts_table,
    ProfileRow: profile_table,
    ReadoutRow: readout_table,
    ServingRow: serving_table,
    AgreementRow: agreement_table,
    SweepRow: sweep_table,
    ShapeRow: shapes_table,
    EmbedRow: embed_table,
    EvalRow: eval_table,
    Observation: observe_table,
    VisionRow: vision_table,
}


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown, as a table for each kind of row."""
    by_kind = {kind: [row for row in rows if isinstance(row, kind)] for kind in KINDS}
    return "\n\n".join(KINDS[kind](own) for kind, own in by_kind.items() if own)
