"""Rows of prompts that vLLM served."""

from dataclasses import replace

from deltahalt.lab.bench.serving import STOCK, markdown
from helpers.serving_rows import ROW


def test_gains_are_beside_stock_on_the_same_prompts() -> None:
    halted = replace(ROW, policy="dash", first_token=0.215, per_second=4.2)
    longer = replace(halted, prompt=65_536, first_token=0.9, token=None, per_second=None)
    shown = markdown([ROW, halted, longer]).splitlines()
    assert shown[2:] == [
        f"| 1 | 16,384 | {STOCK} | default | 0.430 |  | 5.1 | 2.10 |  |",
        "| 1 | 16,384 | `dash` | default | 0.215 | 2.00x | 5.1 | 4.20 | 2.00x |",
        "| 1 | 65,536 | `dash` | default | 0.900 |  |  |  |  |",
    ]
