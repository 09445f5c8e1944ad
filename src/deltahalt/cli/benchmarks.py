"""Public benchmarks: `eval`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from deltahalt.cli.base import (
    MOST_BATCH,
    MOST_SAMPLES,
    MOST_SEED,
    MOST_TOKENS,
    AttentionOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    MinPromptOption,
    ModelOption,
    PolicyOption,
    log,
    out,
)
from deltahalt.cli.common import parse_names, parse_numbers
from deltahalt.cli.shapes import shapes
from deltahalt.errors import InputError
from deltahalt.files import require_apart
from deltahalt.methods.registry import check_method
from deltahalt.profile_names import AUTO

SHAPES = "shapes"  # the task that is not lm-eval's


def evaluate(
    tasks: Annotated[
        str, typer.Option(help="Comma-separated: longbench_e, ruler, loogle, needle, any of lm-eval; or shapes.")
    ],
    model: ModelOption = "smollm2-135m",
    policy: PolicyOption = AUTO,
    data: Annotated[Path | None, typer.Option(help="Folder of local data; without it, lm-eval downloads.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=MOST_SAMPLES, help="Use each task's first samples only.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST_BATCH, help="Prompts at once, padded on the left.")] = 1,
    rows: Annotated[Path | None, typer.Option(help="Add the result rows to this JSONL file.")] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths of ruler and needle, in tokens.")] = "4096",
    bertscore: Annotated[
        str | None, typer.Option(help="LooGLE's encoder, MODEL:LAYER such as roberta-large:17; or none, to go without.")
    ] = None,
    chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Ask in the chat format.")] = False,
    max_length: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Cut prompts and answers to this number of tokens.")
    ] = None,
    min_prompt_tokens: MinPromptOption = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seeds whatever draws.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    attention: AttentionOption = None,
) -> None:
    """Score a policy on benchmarks, by lm-evaluation-harness (see docs/evaluate.md)."""
    names = parse_names(tasks, "--tasks", ",")
    if SHAPES in names:
        if len(names) > 1:
            raise InputError(f"{tasks!r} names shapes and other tasks: run shapes by themselves, --tasks shapes")
        refused = {
            "--batch-size": None if batch_size == 1 else batch_size,
            "--bertscore": bertscore,
            "--apply-chat-template": chat_template or None,
            "--seed": seed or None,
            "--min-prompt-tokens": min_prompt_tokens or None,
            "--device-map": device_map,
            "--attention": attention,
            "--max-length": max_length,
        }
        if given := [option for option, value in refused.items() if value is not None]:
            raise InputError(
                f"--tasks shapes cannot use {' and '.join(given)}: give only --model, --policy, --limit, --lengths, "
                "--data, --rows, --dtype and --device with it"
            )
        shapes(rows, model, policy, prompts=limit or 3, tokens=lengths, data=data, dtype=dtype, device=device)
        return
    try:
        from deltahalt.integrations.lm_eval import DeltahaltLM
        from deltahalt.lab.harness.lookup import find_tasks
        from deltahalt.lab.harness.run import run_tasks
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'deltahalt[eval]'") from error

    from deltahalt.answering.documents import context_size
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.figures.tables import KINDS
    from deltahalt.lab.rows.base import append_rows, require_rows
    from deltahalt.loading.models import load_tokenizer

    sizes = parse_numbers(lengths)
    method = check_method(policy)
    if rows is not None:
        require_apart(rows, [model, policy])
        require_rows(rows, *KINDS)
    config = check_text_model(
        model,
        [method],
        device=device,
        min_prompt_tokens=min_prompt_tokens,
    )
    if max_length is not None and max_length > context_size(config):
        raise InputError(f"--max-length is {max_length:,}, but the model takes {context_size(config):,} tokens")
    found = find_tasks(
        names,
        data=data,
        lengths=sizes,
        model=model,
        tokenizer=load_tokenizer(model),
        bertscore=bertscore,
    )
    log.print(f"loading {model}")
    lm = DeltahaltLM(
        model,
        policy,
        min_prompt_tokens=min_prompt_tokens,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attention=attention,
        batch_size=batch_size,
        max_length=max_length,
    )
    table = Table(Column("task", overflow="fold"), "metric", "value", "stderr", "samples", "seconds")
    try:
        for row in run_tasks(lm, found, limit=limit, chat_template=chat_template, seed=seed):
            stderr = "" if row.stderr is None else f"{row.stderr:.4f}"
            table.add_row(row.task, row.metric, f"{row.value:.4f}", stderr, f"{row.samples}", f"{row.seconds:.1f}")
            if rows is not None:
                append_rows(rows, [row])
    finally:
        if table.row_count:
            out.print(table)
    lm.close()
