"""Rows of prompts whose tokens in vLLM were compared with the core engine's."""

from pathlib import Path

from deltahalt.lab.bench.agreement import AgreementRow
from deltahalt.lab.figures.tables import KINDS, markdown
from deltahalt.lab.rows.base import append_rows, read_rows
from helpers.ran import RAN

ROW = AgreementRow(
    model="m",
    policy="dash",
    source="pages",
    mode="default",
    vllm="0.32.0",
    chunk=2_048,
    in_flight=16,
    prompts=100,
    halted=83,
    shortest=303,
    longest=7_133,
    new_tokens=24,
    same=99,
    **RAN,
)


def test_a_row_says_how_many_prompts_got_the_same_tokens(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [ROW])
    shown = markdown(read_rows(tmp_path / "rows.jsonl", *KINDS)).splitlines()
    assert shown[2:] == [
        "| m | `dash` | default | 0.32.0 | GPU | 100 pages, 83 of which halt | 303 to 7,133 | 2,048 | 24 | 99 |"
    ]
