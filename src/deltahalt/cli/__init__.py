"""The command `deltahalt`: one file a group of commands."""

import typer

from deltahalt.cli import accuracy, ask, benchmarks, describe, look, observe, show, speed, view, vision
from deltahalt.cli.base import log
from deltahalt.errors import DeltahaltError

app = typer.Typer(
    help="Make long prompts cheap: halt prompt tokens inside the model during prefill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    ask.run,
    ask.demo,
    look.look,
    describe.policies,
    describe.flops,
    speed.bench,
    accuracy.sweep,
    accuracy.calibrate,
    vision.vision_sweep,
    benchmarks.evaluate,
    observe.observe,
    show.plot,
    show.report,
    view.view,
):
    app.command("eval" if command is benchmarks.evaluate else None)(command)


def main() -> None:
    """Run the command; a DeltahaltError becomes one line on stderr and exit status 2."""
    try:
        app()
    except DeltahaltError as error:
        log.print(f"deltahalt: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
