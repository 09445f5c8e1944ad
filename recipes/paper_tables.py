"""Run what a table of the paper compares: its methods on its tasks, or its formula.

usage: paper_tables.py TABLE [--tasks TASK,...] [OPTION ...]

TABLE is table1 (LongBench-E), table2 (LooGLE), table3 (FLOPs) or table4 (score and efficiency on LongBench-E). OPTIONs
are those of `deltahalt eval`, such as --model, --data, --limit and --rows; of `deltahalt flops` for table3. --tasks:
only these of the table's tasks. The paper's own numbers are in paper.json beside this file; results_page.py puts both
together.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
TABLES = [name for name in PAPER if name.startswith("table")]


def commands(name: str, only: list[str], options: list[str]) -> list[list[str]]:
    """The commands that measure a table: one for each method, or the one that counts. Raises ValueError for `only`."""
    table = PAPER[name]
    if "lengths" in table:
        lengths = ",".join(map(str, table["lengths"]))
        return [
            ["flops", "--shape", "qwen2.5-7b", "--policy", PAPER["methods"]["DASH"], "--lengths", lengths, *options]
        ]
    unknown = set(only) - set(tasks(table))
    if unknown:
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(tasks(table))}")
    chosen = [task for task in tasks(table) if task in only or not only]
    given = ["--tasks", ",".join(chosen), *table.get("options", ()), *options]
    return [["eval", "--policy", PAPER["methods"][method], *given] for method in methods(table)]


def tasks(table: dict[str, Any]) -> list[str]:
    """lm-eval's names of a table's tasks."""
    if "groups" in table:
        return [task for group in table["groups"].values() for task in group["tasks"]]
    return list(dict.fromkeys(task for task, _, _ in table["columns"].values()))


def methods(table: dict[str, Any]) -> list[str]:
    """The methods that a table compares, as the paper calls them."""
    groups = table.get("groups", {"": table}).values()
    return list(dict.fromkeys(method for group in groups for method in group["paper"]))


def main() -> None:
    """Run the commands one after the other, each printed before."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--tasks", default="")
    given, options = parser.parse_known_args()
    try:
        wanted = commands(given.table, list(filter(None, given.tasks.split(","))), options)
    except ValueError as error:
        parser.error(str(error))
    for command in wanted:
        print("+ deltahalt", shlex.join(command), flush=True)  # noqa: T201
        subprocess.run([Path(sys.executable).with_name("deltahalt"), *command], check=True)


if __name__ == "__main__":
    main()
