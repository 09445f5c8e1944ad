"""Rows of prompts that vLLM served."""

from dataclasses import replace

from deltahalt.lab.bench.serving import STOCK, markdown
from helpers.serving_rows import ROW


def test_gains_are_beside_stock_on_the_same_prompts() -> None:
    halted = replace(ROW, policy="dash", first_token=0.215, per_second=4.2)
    longer = replace(halted, prompt=65_536, first_token=0.9, token=None, per_second=None)
    shown = markdown([ROW, halted, longer]).splitlines()
    assert shown[2:] == [
        f"| 16,384 | {STOCK} | 0.430 |  | 5.1 | 2.10 |  |",
        "| 16,384 | `dash` | 0.215 | 2.00x | 5.1 | 4.20 | 2.00x |",
        "| 65,536 | `dash` | 0.900 |  |  |  |  |",
    ]


def test_gains_are_beside_stock_in_the_same_mode() -> None:
    eager = replace(ROW, mode="eager", first_token=0.86)
    halted = [replace(row, policy="dash", first_token=0.43) for row in (ROW, eager)]
    shown = markdown([ROW, eager, *halted]).splitlines()
    assert shown[4:] == [
        "| 16,384 | `dash` | default | 0.430 | 1.00x | 5.1 | 2.10 | 1.00x |",
        "| 16,384 | `dash` | eager | 0.430 | 2.00x | 5.1 | 2.10 | 1.00x |",
    ]
