"""The command `deltahalt`: one file a group of commands."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltahalt import __version__
from deltahalt.cli import accuracy, ask, benchmarks, describe, look, observe, shapes, show, speed, view, vision
from deltahalt.cli.base import log, out
from deltahalt.errors import DeltahaltError

UsageError: Any = typer.BadParameter.__mro__[1]  # Typer has no public name for it
PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Ask": (ask.run, ask.demo, look.look, view.view),
    "Measure": (
        speed.bench,
        benchmarks.evaluate,
        accuracy.sweep,
        shapes.shapes,
        vision.vision_sweep,
        observe.observe,
        accuracy.calibrate,
    ),
    "Show": (show.report, show.plot, describe.flops, describe.policies),
}


class Panels(TyperGroup):
    """The command's help with its subcommands under the heads of their panels, in plain text and in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel."""
        for panel in PANELS:
            every: list[Any] = list(self.commands.values())
            own = [each for each in every if each.rich_help_panel == panel]
            with formatter.section(panel):
                formatter.write_dl([(command.name, command.get_short_help_str(limit=200)) for command in own])


app = typer.Typer(
    cls=Panels,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"deltahalt {__version__}", markup=False, highlight=False)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make long prompts cheap: halt prompt tokens inside the model during prefill."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


for panel, commands in PANELS.items():
    for command in commands:
        name = "eval" if command is benchmarks.evaluate else None
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command; a DeltahaltError or a wrong option becomes one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False, prog_name="deltahalt")
    except DeltahaltError as error:
        _fail(str(error), error)
    except UsageError as error:
        command = "deltahalt" if error.ctx is None else error.ctx.command_path
        _fail(f"{error.format_message()} (see {command} --help)", error)
    raise SystemExit(status or 0)


def _fail(message: str, error: Exception) -> None:
    """Show one line on stderr, control characters and lone surrogates escaped, and exit with status 2."""
    line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message.replace("\n", " "))
    log.print(f"deltahalt: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(2) from error
