"""The commands `sweep` and `calibrate`, which measure the accuracy of policies at their speedup."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import (
    MOST_CHARACTERS,
    MOST_TOKENS,
    REFERENCE,
    CharactersOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    LimitOption,
    ModelOption,
    SampleSeedOption,
    measured,
    out,
    progress,
)
from deltahalt.cli.common import (
    load_model,
    parse_names,
    parse_numbers,
    parse_speedups,
    resolve_policy,
)
from deltahalt.cli.tables import of_policies
from deltahalt.files import require_apart, require_output
from deltahalt.methods.registry import check_method
from deltahalt.profile import is_profile
from deltahalt.profile_names import names_profile

QueryFreeOption = Annotated[
    bool, typer.Option("--query-free", help="Halt before the question is read: one prefill for many questions.")
]


def sweep(
    rows: Annotated[Path, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")],
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = "dash window-attention random",
    starts: Annotated[str, typer.Option(help="Start layers to try with each: indices or fractions.")] = "0.4",
    ratios: Annotated[str, typer.Option(help="Pruning ratios to try with each.")] = "0.667",
    data: Annotated[
        str, typer.Option(help="JSONL of task, prompt, answer; generated:COUNT; or (held-out-)shapes:COUNT[:FOLDER].")
    ] = "generated:12",
    characters: CharactersOption = None,
    limit: LimitOption = None,
    max_answer_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Judge no more of an answer.")] = 48,
    query_free: QueryFreeOption = False,
    seed: SampleSeedOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result to this .svg or .png (extra `plot`).")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure accuracy against speed: every policy, start layer and ratio on every sample."""
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.evaluation.grid import variants
    from deltahalt.lab.evaluation.samples import load_samples
    from deltahalt.lab.evaluation.sweep import SweepRow, SweepSettings
    from deltahalt.lab.evaluation.sweep import sweep as run_sweep
    from deltahalt.lab.figures.house import check_plot, is_plot
    from deltahalt.lab.figures.pareto import pareto
    from deltahalt.lab.rows.base import require_rows

    named = parse_names(policies, "--policies")
    grid = parse_names(starts, "--starts", ","), parse_names(ratios, "--ratios", ",")
    if plot is not None:
        check_plot(plot)
        require_output(plot, is_plot, inputs=[rows, data, model, *named], force=None)
    require_apart(rows, [data, model, *named])
    require_rows(rows, SweepRow)
    settings = SweepSettings(query_free, max_answer_tokens)
    for policy in named:
        check_method(policy)
    given = variants([policy for policy in named if not names_profile(policy)], *grid)
    samples = load_samples(data, characters=characters, seed=seed)[:limit]
    check_text_model(model, given.values(), device=device)
    loaded = load_model(model, dtype=dtype, device=device)
    resolved = [resolve_policy(policy, loaded.model) for policy in named]
    chosen = variants(resolved, *grid)
    what = f"{len(chosen)} policies on {len(samples)} samples"
    found = measured(what, len(samples), partial(run_sweep, loaded, samples, chosen, rows, settings), _show)
    if plot is not None:
        pareto(found, plot)


def _show(rows: list[Any]) -> None:
    """A line for each policy of a sweep's rows."""
    from deltahalt.lab.evaluation.summary import OWN_SPEEDUP, SPEEDUP, summarize

    lines = summarize(rows)
    columns = {
        "samples": [f"{line.samples}" for line in lines],
        "exact by the full model": [f"{line.full_exact:.2f}" for line in lines],
        "exact": [f"{line.exact:.2f}" for line in lines],
        "NLL change": [f"{line.nll_change:+.3f}" for line in lines],
        "agreement": [f"{line.agreement:.2f}" for line in lines],
        SPEEDUP: [f"{line.reference_speedup:.2f}x" for line in lines],
        OWN_SPEEDUP: [f"{line.speedup:.2f}x" for line in lines],
    }
    common = ("samples", "exact by the full model")
    notes = f"{REFERENCE}; {OWN_SPEEDUP}: the same for this model and these prompts"
    out.print(of_policies([line.policy for line in lines], columns, common=common, caption=notes))


def calibrate(
    profile: Annotated[Path, typer.Option("--out", help="JSON file for the profile; use it as --policy FILE.")],
    model: ModelOption = "smollm2-135m",
    target_speedup: Annotated[
        str | None,
        typer.Option(
            help="Speedups to find a policy for, comma-separated, in FLOPs on Qwen2.5-7B's shape at 16,384 tokens; by "
            "default 1.7. The policy of the first becomes the profile's default."
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Largest increase in NLL, nats a token: the profile gets the fastest policy within it, and the "
            "speedups tried are 1.3 to 2.5 unless --target-speedup is given."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Indices of the layers at which to try the first halting decision, comma-separated; by default every "
            "layer that can decide."
        ),
    ] = None,
    query_free: QueryFreeOption = False,
    data: Annotated[
        str | None,
        typer.Option(help="As for sweep; by default generated:24+shapes:25, on a CPU generated:12+shapes:25."),
    ] = None,
    characters: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_CHARACTERS, help="Length of a generated prompt; by default 12,000, on a CPU 4,000."
        ),
    ] = None,
    seed: SampleSeedOption = None,
    rows: Annotated[Path | None, typer.Option(help="Every measurement; by default beside the profile.")] = None,
    force: ForceOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Find the policy that loses least at a given speed, for one model, and write it down as a profile."""
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.evaluation.calibrate import calibrate as run_calibration
    from deltahalt.lab.evaluation.calibrate import check_targets, default_samples
    from deltahalt.lab.evaluation.samples import load_samples
    from deltahalt.lab.evaluation.sweep import SweepRow
    from deltahalt.lab.rows.base import require_rows
    from deltahalt.loading.models import find_device

    usual_targets = "1.7" if max_loss is None else "1.3,1.5,1.7,2.0,2.5"
    targets = parse_speedups(usual_targets if target_speedup is None else target_speedup)
    numbers = None if layers is None else parse_numbers(layers, least=0)
    kept = profile.with_suffix(".rows.jsonl") if rows is None else rows
    require_output(profile, is_profile, inputs=[kept, data, model], force=force)
    require_apart(kept, [data, model])
    require_rows(kept, SweepRow)
    check_targets(check_text_model(model, [], device=device), targets, numbers, max_loss, query_free=query_free)
    if data is None:
        data, length = default_samples(find_device(device), query_free=query_free)
        characters = characters or length
    samples = load_samples(data, characters=characters, seed=seed)
    loaded = load_model(model, dtype=dtype, device=device)
    with progress() as bar:
        task = bar.add_task("calibrating", total=1.0)
        found = run_calibration(
            loaded,
            samples,
            targets,
            kept,
            max_loss=max_loss,
            layers=numbers,
            query_free=query_free,
            tick=lambda what, done: bar.update(task, description=what, completed=done),
        )
    columns = {
        "speedup": [f"{choice.speedup:.2f}x" for choice in found.choices],
        "NLL change": [f"{choice.loss:+.3f} ± {choice.error:.3f}" for choice in found.choices],
        "same answers": [f"{choice.exact:.2f}" for choice in found.choices],
    }
    out.print(of_policies([choice.policy for choice in found.choices], columns, caption=REFERENCE))
    evidence = found.evidence
    what = f"{len(evidence['tried'])} policies, {evidence['measurements']} measurements in {evidence['seconds']} s"
    out.print(f"{what}: {profile}")
    found.write(profile)
