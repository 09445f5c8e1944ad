"""The command `deltahalt`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from deltahalt.errors import DeltahaltError, InputError
from deltahalt.policies import POLICIES, parse_policy
from deltahalt.policy import AnyPolicy
from deltahalt.profile import AUTO, names_profile, policy_text

app = typer.Typer(
    help="Make long prompts cheap: halt prompt tokens inside the model during prefill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out, log = Console(), Console(stderr=True)

ModelOption = Annotated[str, typer.Option(help="Hub id, local folder, .gguf file, or smollm2-135m.")]
PolicyOption = Annotated[
    str,
    typer.Option(help="auto, a profile.json, or name:option=value,...; join stages with +. See `deltahalt policies`."),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU if there is one.")]
DeviceMapOption = Annotated[str | None, typer.Option(help="Spread the model over devices, such as auto.")]
AttentionOption = Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]
HaltedKVOption = Annotated[str, typer.Option(help="K/V of halted tokens in deeper layers: drop or frozen.")]
MinPromptOption = Annotated[int, typer.Option(help="Leave shorter prompts whole.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


@app.command()
def run(
    document: Annotated[str, typer.Option(help="Text file to ask about, or - for standard input.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    model: ModelOption = "smollm2-135m",
    policy: PolicyOption = AUTO,
    pruning_ratio: Annotated[float | None, typer.Option(help="Share of eligible tokens to halt, in [0, 1).")] = None,
    start: Annotated[str | None, typer.Option(help="Layer that decides: an index, or a fraction such as 0.4.")] = None,
    keep_first: Annotated[int | None, typer.Option(help="Tokens at the beginning that never halt.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Tokens at the end that never halt, 1 or more.")] = None,
    scope: Annotated[str | None, typer.Option(help="Which tokens may halt: all, visual or text.")] = None,
    boundary: Annotated[str | None, typer.Option(help="Halt after the whole layer (block) or its attention.")] = None,
    halted_kv: HaltedKVOption = "drop",
    min_prompt_tokens: MinPromptOption = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    compare: Annotated[bool, typer.Option("--compare", help="Also run the full model, and show both.")] = False,
    as_json: JsonOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer a question about a document with halted prompt tokens, and show what it cost."""
    from deltahalt.documents import read_document

    settings = {
        "pruning_ratio": pruning_ratio,
        "start": start,
        "keep_first": keep_first,
        "keep_last": keep_last,
        "scope": scope,
        "boundary": boundary,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    _check(policy, given)
    text = read_document(document)
    loaded = _load(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    chosen = _with_settings(_resolve(policy, loaded.model), given)
    wanted: dict[str, AnyPolicy | None] = {"full model": None} if compare else {}
    _answer_all(
        loaded,
        text,
        question,
        wanted | {policy: parse_policy(chosen)},
        as_json=as_json,
        max_new_tokens=max_new_tokens,
        halted_kv=halted_kv,
        min_prompt_tokens=min_prompt_tokens,
    )


@app.command()
def demo(model: ModelOption = "smollm2-135m", policy: PolicyOption = AUTO, as_json: JsonOption = False) -> None:
    """Find a fact planted in the standard library's help texts, with the full model and with halted tokens."""
    from deltahalt.demo import EXPECTED, QUESTION, demo_document

    _check(policy)
    loaded = _load(model)
    chosen = _resolve(policy, loaded.model)
    answers = _answer_all(
        loaded,
        demo_document(loaded.tokenizer),
        QUESTION,
        {"full model": None, policy: parse_policy(chosen)},
        as_json=as_json,
        max_new_tokens=32,
    )
    log.print(f"Asked: {QUESTION} Right where the answer holds: {EXPECTED}.", highlight=False)
    wrong = [name for name, answer in answers.items() if EXPECTED not in answer.text]
    if wrong:
        raise InputError(f"wrong answer from: {', '.join(wrong)}. Try another --policy or a larger --model")


@app.command()
def policies(as_json: JsonOption = False) -> None:
    """List the policies: what each does, where it acts, where it comes from."""
    rows = [{"name": p.name, "summary": p.summary, "stage": p.stage, "source": p.source} for p in POLICIES.values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("policy", "what it does", "stage", "source")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)


@app.command()
def flops(
    shape: Annotated[
        str | None, typer.Option(help="A known shape, or layers,hidden,ffn,heads,kv_heads,head_dim.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Take the shape of this model's configuration instead.")] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "8192,16384,32768,65536,131072",
    policy: PolicyOption = "dash",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy saves: by the paper's formula (Table 3) and by a true count of FLOPs."""
    from deltahalt.flops import ModelShape, savings

    if (shape is None) == (model is None):
        raise InputError("give either --shape or --model")
    if model is None:
        sizes = ModelShape.parse(str(shape))
    else:
        from deltahalt.models import load_config

        sizes = ModelShape.of(load_config(model).get_text_config())
    rows = [savings(sizes, parse_policy(policy), length) for length in _parse_numbers(lengths)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("prompt", "kept", "paper: FLOPs saved", "paper: speedup", "true: FLOPs saved", "true: speedup")
    for row in rows:
        table.add_row(
            f"{row.prompt:,}",
            f"{row.kept:,}",
            f"{100 * row.paper_reduction:.2f} %",
            f"{row.paper_speedup:.2f}x",
            f"{100 * row.true_reduction:.2f} %",
            f"{row.true_speedup:.2f}x",
        )
    out.print(table)


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help="Measure this model (default: smollm2-135m).")] = None,
    shape: Annotated[str | None, typer.Option(help="Measure random weights of this shape instead.")] = None,
    policy: PolicyOption = AUTO,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "4096",
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs each way, after one warm-up.")] = 5,
    seed: Annotated[int, typer.Option(help="Draws the prompts.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    rows: Annotated[Path | None, typer.Option(help="Add the rows to this JSONL file.")] = None,
) -> None:
    """Time prefill in turn: plain Hugging Face, this engine with nothing halted, and the policy."""
    import torch

    from deltahalt.bench import append_rows, measure, random_model
    from deltahalt.flops import ModelShape

    if model is not None and shape is not None:
        raise InputError("give either --shape or --model")
    _check(policy)
    sizes = _parse_numbers(lengths)
    network: Any
    if shape is None:
        name = model or "smollm2-135m"
        network = _load(name, dtype=dtype, device=device).model
    else:
        name, place = f"random {shape}", device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = getattr(torch, "float32" if dtype == "auto" else dtype)
        network = random_model(ModelShape.parse(shape), dtype=kind, device=place, longest=max(sizes))
    policy = _resolve(policy, network)
    chosen = parse_policy(policy)
    table = Table("prompt", "full s", "nothing halted s", "overhead", "halted s", "speedup", "bound", "speedup / bound")
    with Progress(console=log, transient=True) as progress:
        task = progress.add_task(f"{name}, {policy}", total=3 * (repeats + 1) * len(sizes))
        options: dict[str, Any] = {"batch": batch, "repeats": repeats, "seed": seed}
        for size in sizes:
            row = measure(network, name, chosen, policy, size, tick=lambda: progress.advance(task), **options)
            if rows is not None:
                append_rows(rows, [row])
            table.add_row(
                f"{row.prompt:,}",
                f"{row.full_seconds:.3f}",
                f"{row.dense_seconds:.3f}",
                f"{100 * row.overhead:+.1f} %",
                f"{row.halted_seconds:.3f}",
                f"{row.speedup:.2f}x",
                f"{row.bound:.2f}x",
                f"{row.share:.2f}",
            )
    out.print(table)
    out.print(f"{row.machine}; {row.dtype}; medians of {repeats} runs in turn", highlight=False)


@app.command()
def sweep(
    rows: Annotated[Path, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")],
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = "dash window-attention random",
    starts: Annotated[str, typer.Option(help="Start layers to try with each: indices or fractions.")] = "0.4",
    ratios: Annotated[str, typer.Option(help="Pruning ratios to try with each.")] = "0.667",
    data: Annotated[str, typer.Option(help="JSONL of task, prompt, answer; or generated:COUNT.")] = "generated:12",
    characters: Annotated[int, typer.Option(min=1, help="Length of a generated prompt.")] = 12_000,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first samples only.")] = None,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Judge no more of an answer.")] = 48,
    halted_kv: HaltedKVOption = "drop",
    query_free: Annotated[
        bool, typer.Option("--query-free", help="Halt before the question is read: one prefill for many questions.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the generated samples.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the result to this .svg or .png (extra `plot`).")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure accuracy against speed: every policy, start layer and ratio on every sample."""
    from deltahalt.evaluation.samples import load_samples
    from deltahalt.evaluation.summary import summarize
    from deltahalt.evaluation.sweep import Way
    from deltahalt.evaluation.sweep import sweep as run_sweep
    from deltahalt.figures.pareto import check_plot, pareto
    from deltahalt.policies import variants

    if plot is not None:
        check_plot(plot)
    way = Way(halted_kv, query_free, max_answer_tokens)
    named = policies.split()
    variants([policy for policy in named if not names_profile(policy)], starts.split(","), ratios.split(","))
    samples = load_samples(data, characters=characters, seed=seed)[:limit]
    loaded = _load(model, dtype=dtype, device=device)
    resolved = [_resolve(policy, loaded.model) for policy in named]
    chosen = variants(resolved, starts.split(","), ratios.split(","))
    with Progress(console=log, transient=True) as progress:
        task = progress.add_task(f"{len(chosen)} policies on {len(samples)} samples", total=len(samples))
        measured = run_sweep(loaded, samples, chosen, rows, way, tick=lambda: progress.advance(task))
    table = Table("policy", "samples", "exact (full)", "NLL change", "agreement", "speedup", "7B, 16K")
    for line in summarize(measured):
        table.add_row(
            line.policy,
            f"{line.samples}",
            f"{line.exact:.2f} ({line.full_exact:.2f})",
            f"{line.nll_change:+.3f}",
            f"{line.agreement:.2f}",
            f"{line.speedup:.2f}x",
            f"{line.reference_speedup:.2f}x",
        )
    out.print(table)
    if plot is not None:
        pareto(measured, plot)


@app.command()
def calibrate(
    profile: Annotated[Path, typer.Option("--out", help="JSON file for the profile; use it as --policy FILE.")],
    model: ModelOption = "smollm2-135m",
    target_speedup: Annotated[
        str | None, typer.Option(help="FLOPs ratios (7B shape, 16K), comma-separated; the first, 1.7, is the default.")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Choose the fastest policy that loses no more nats a token, of 1.3x to 2.5x.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to try, comma-separated; by default all that can.")] = None,
    data: Annotated[str, typer.Option(help="generated:COUNT, or JSONL as for sweep.")] = "generated:16",
    characters: Annotated[int, typer.Option(min=1, help="Length of a generated prompt.")] = 8_000,
    seed: Annotated[int, typer.Option(help="Draws the generated samples.")] = 0,
    rows: Annotated[Path | None, typer.Option(help="Every measurement; by default beside the profile.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Find the policy that loses least at a given speed, for one model, and write it down as a profile."""
    from deltahalt.evaluation.calibrate import calibrate as run_calibration
    from deltahalt.evaluation.samples import load_samples

    targets = _parse_speedups(target_speedup or ("1.7" if max_loss is None else "1.3,1.5,1.7,2.0,2.5"))
    samples = load_samples(data, characters=characters, seed=seed)
    loaded = _load(model, dtype=dtype, device=device)
    with log.status("calibrating") as status:
        found = run_calibration(
            loaded,
            samples,
            targets,
            profile.with_suffix(".rows.jsonl") if rows is None else rows,
            max_loss=max_loss,
            layers=_parse_numbers(layers) if layers else None,
            tick=status.update,
        )
    found.write(profile)
    table = Table("policy", "7B, 16K", "NLL change", "same answers")
    for choice in found.choices:
        table.add_row(choice.policy, f"{choice.speedup:.2f}x", f"{choice.loss:+.3f}", f"{choice.exact:.2f}")
    out.print(table)
    out.print(f"{len(found.evidence['tried'])} policies in {found.evidence['seconds']} s: {profile}", highlight=False)


@app.command()
def plot(
    rows: Annotated[list[Path], typer.Argument(help="JSONL files of rows that `deltahalt sweep` wrote.")],
    picture: Annotated[Path, typer.Option("--out", help="Where to draw: a file that ends in .svg or .png.")],
) -> None:
    """Draw accuracy against speed, from rows already measured; needs the extra `plot`."""
    from deltahalt.evaluation.sweep import read_sweep
    from deltahalt.figures.pareto import pareto

    measured = []
    for file in rows:
        if not file.is_file():
            raise InputError(f"there is no file {file}: give rows that `deltahalt sweep` wrote")
        try:
            measured += read_sweep(file)
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} holds other things than rows that `deltahalt sweep` wrote: {error}") from error
    pareto(measured, picture)


@app.command("eval")
def evaluate(
    tasks: Annotated[str, typer.Option(help="Comma-separated: longbench_e, ruler, loogle, needle, any of lm-eval.")],
    model: ModelOption = "smollm2-135m",
    policy: PolicyOption = AUTO,
    data: Annotated[Path | None, typer.Option(help="Folder of local data; without it, lm-eval downloads.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use each task's first samples only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once, padded on the left.")] = 1,
    rows: Annotated[Path | None, typer.Option(help="Add the result rows to this JSONL file.")] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths of ruler and needle, in tokens.")] = "4096",
    bertscore: Annotated[
        str | None, typer.Option(help="LooGLE's encoder, MODEL:LAYER such as roberta-large:17; or none, to go without.")
    ] = None,
    chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Ask in the chat format.")] = False,
    max_length: Annotated[int | None, typer.Option(min=1, help="Cut prompts and answers to so many tokens.")] = None,
    halted_kv: HaltedKVOption = "drop",
    min_prompt_tokens: MinPromptOption = 0,
    seed: Annotated[int, typer.Option(help="Seeds whatever draws.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score a policy on benchmarks, by lm-evaluation-harness (see docs/evaluate.md)."""
    try:
        from deltahalt.harness.lookup import find_tasks
        from deltahalt.harness.run import append_rows, run_tasks
        from deltahalt.integrations.lm_eval import DeltahaltLM
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'deltahalt[eval]'") from error

    sizes = _parse_numbers(lengths)
    _check(policy)
    log.print(f"loading {model}", markup=False, highlight=False)
    lm = DeltahaltLM(
        model,
        policy,
        halted_kv=halted_kv,
        min_prompt_tokens=min_prompt_tokens,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attention=attention,
        trust_remote_code=trust_remote_code,
        batch_size=batch_size,
        max_length=max_length,
    )
    found = find_tasks(
        [name.strip() for name in tasks.split(",")],
        data=data,
        lengths=sizes,
        model=model,
        tokenizer=lm.tokenizer,
        bertscore=bertscore,
    )
    table = Table(Column("task", overflow="fold"), "metric", "value", "stderr", "samples", "seconds")
    for row in run_tasks(lm, found, limit=limit, chat_template=chat_template, seed=seed):
        if rows is not None:
            append_rows(rows, [row])
        stderr = "" if row.stderr is None else f"{row.stderr:.4f}"
        table.add_row(row.task, row.metric, f"{row.value:.4f}", stderr, f"{row.samples}", f"{row.seconds:.1f}")
    lm.close()
    if lm.rank == 0:
        out.print(table)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="JSONL rows of `deltahalt bench` or `deltahalt sweep`.")],
    frontier: Annotated[bool, typer.Option("--frontier", help="Of a sweep: policies that none beats.")] = False,
) -> None:
    """Print measured rows as a Markdown table."""
    from deltahalt import bench as speed
    from deltahalt.evaluation import summary as accuracy
    from deltahalt.evaluation.sweep import read_sweep
    from deltahalt.figures.comparison import on_frontier

    if not file.is_file():
        raise InputError(f"there is no file {file}: give rows that `deltahalt bench` or `deltahalt sweep` wrote")
    try:
        table = speed.markdown(speed.read_rows(file))
    except TypeError:  # rows of the other kind
        rows = read_sweep(file)
        table = accuracy.markdown(on_frontier(rows) if frontier else rows)
    typer.echo(table)


def main() -> None:
    """Run the command; a DeltahaltError becomes one line on stderr and exit status 2."""
    try:
        app()
    except DeltahaltError as error:
        log.print(f"deltahalt: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from error


def _load(name: str, **options: Any) -> Any:
    """Load a model, under the host's own progress bars."""
    from deltahalt.models import load

    log.print(f"loading {name}", markup=False, highlight=False)
    return load(name, **options)


def _answer_all(
    loaded: Any, document: str, question: str, policies: dict[str, AnyPolicy | None], *, as_json: bool, **options: Any
) -> dict[str, Any]:
    """Answer with each policy in turn and show the answers; returns them by name."""
    from deltahalt.ask import ask, warm_up
    from deltahalt.documents import build_prompt, to_device
    from deltahalt.show import show_answers

    prompt = build_prompt(loaded.tokenizer, loaded.model.config, document, question)
    inputs = to_device(prompt, loaded.model.device)
    answers = {}
    warm_up(loaded, inputs)
    for name, policy in policies.items():
        with _status(f"reading {inputs['input_ids'].shape[1]:,} tokens and answering: {name}"):
            answers[name] = ask(loaded, inputs, policy, **options)
    if as_json:
        typer.echo(json.dumps({name: asdict(answer) for name, answer in answers.items()}, indent=2))
    else:
        show_answers(out, answers)
    return answers


def _check(policy: str, settings: dict[str, Any] | None = None) -> None:
    """Refuse a policy that cannot be, before a model is loaded for nothing."""
    if not names_profile(policy):
        parse_policy(_with_settings(policy, settings or {}))


def _resolve(policy: str, model: Any) -> str:
    """The text of the policy that `policy` stands for on this model; says so where that is not the text itself."""
    from deltahalt.attach import find_decoder

    chosen = policy_text(policy, find_decoder(model))
    if chosen != policy:
        log.print(f"{policy}: {chosen}", markup=False, highlight=False, soft_wrap=True)
    return chosen


def _with_settings(text: str, settings: dict[str, Any]) -> str:
    """The policy's text with settings from options of their own."""
    if settings and "+" in text:
        raise InputError("this policy has several stages: give each its settings in --policy, name:option=value,...")
    options = ",".join(f"{name}={value}" for name, value in settings.items())
    return text + ("," if ":" in text else ":") + options if options else text


def _parse_numbers(text: str) -> list[int]:
    try:
        lengths = [int(length) for length in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is not whole numbers with commas between") from error
    if min(lengths) < 1:
        raise InputError(f"{text!r} has a number below 1")
    return lengths


def _parse_speedups(text: str) -> list[float]:
    try:
        speedups = [float(speedup) for speedup in text.split(",")]
    except ValueError as error:
        raise InputError(f"speedups {text!r} are not numbers with commas between") from error
    if min(speedups) <= 1:
        raise InputError("every target speedup must be above 1")
    return speedups


@contextmanager
def _status(what: str) -> Iterator[None]:
    """A spinner on stderr while something long goes on."""
    with log.status(what):
        yield
