"""Run what a table of the paper compares: its methods on its tasks, or its formula.

usage: python -m tools.paper_tables TABLE [--methods METHOD,...] [--tasks TASK,...] [--longbench] [--encoder ENCODER]
                       [--kvpress PYTHON] [...]

TABLE is table1 (LongBench-E), table2 (LooGLE), table3 (FLOPs) or table4 (score and efficiency on LongBench-E). Other
options are those of `deltahalt eval`, such as --model, --data, --limit and --rows; of `deltahalt flops` for table3.
--methods, --tasks: only these of the table's; beside the paper's methods there are FastKV, GemFilter, and what the
model's profile chooses. --longbench: LongBench's own samples in place of LongBench-E's, by the same prompts and
metrics; mini_longbench.py makes files of some. --encoder: LLMLingua2's, a hub id or folder; small_encoder/ makes one.
--kvpress: an interpreter that has kvpress, for SnapKV. A method that fails is named at the end, and the others run. The
paper's own numbers are in paper.json beside this file; results_page.py puts both together. Tables 5 to 7:
vision_tables.py.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
TABLES = ["table1", "table2", "table3", "table4"]


def commands(
    name: str,
    only: Sequence[str],
    which: Sequence[str],
    options: Sequence[str],
    *,
    encoder: str | None = None,
    longbench: bool = False,
) -> dict[str, list[str]]:
    """The commands that measure a table, by method; `only` these methods and `which` tasks, or all.

    encoder: LLMLingua2's, in place of its default. longbench: on LongBench's tasks in place of LongBench-E's. Raises
    ValueError for a method or task that the table has not, and for a table that is not of LongBench-E.
    """
    table = PAPER[name]
    if longbench and "LongBench-E" not in table["title"]:
        raise ValueError(f"{name} is not of LongBench-E: leave --longbench out")
    if "lengths" in table:
        if which:
            raise ValueError(f"{name} is a formula: leave --tasks out")
        choose(name, ["DASH"], only)
        given = ["--policy", PAPER["methods"]["DASH"], "--lengths", ",".join(map(str, table["lengths"]))]
        return {"DASH": ["flops", "--shape", "qwen2.5-7b", *given, *options]}
    known = [task.removesuffix("_e") for task in tasks(table)] if longbench else tasks(table)
    given = ["--tasks", ",".join(choose(name, known, which)), *table.get("options", ()), *options]
    wanted = choose(name, [*methods(table), *PAPER["beside"]], only)
    policies = PAPER["methods"] | PAPER["beside"]
    policies |= {"LLMLingua2": f"llmlingua2:encoder={encoder}"} if encoder else {}
    return {method: ["eval", "--policy", policies[method], *given] for method in wanted}


def choose(name: str, known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The `wanted` ones of the words that a table knows, in its order; all for none. Raises ValueError for others."""
    if unknown := [word for word in wanted if word not in known]:
        raise ValueError(f"{name} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return [word for word in known if word in wanted or not wanted]


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
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--methods", type=words, default=[])
    parser.add_argument("--tasks", type=words, default=[])
    parser.add_argument("--longbench", action="store_true")
    parser.add_argument("--encoder")
    parser.add_argument("--kvpress", default=sys.executable)
    given, options = parser.parse_known_args()
    try:
        wanted = commands(
            given.table, given.methods, given.tasks, options, encoder=given.encoder, longbench=given.longbench
        )
    except ValueError as error:
        parser.error(str(error))
    failed = []
    for method, command in wanted.items():
        print("+ deltahalt", shlex.join(command), flush=True)  # noqa: T201
        python = given.kvpress if method == "SnapKV" else sys.executable
        if subprocess.run([python, "-m", "deltahalt", *command], check=False).returncode:
            failed.append(method)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def words(text: str) -> list[str]:
    """What commas separate."""
    return [word.strip() for word in text.split(",")]


if __name__ == "__main__":
    main()
