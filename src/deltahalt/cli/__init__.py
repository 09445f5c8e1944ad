"""The command `deltahalt`: one file a group of commands."""

import io
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltahalt import __version__
from deltahalt.cli import (
    accuracy,
    ask,
    benchmarks,
    describe,
    embed,
    look,
    observe,
    served,
    shapes,
    show,
    speed,
    view,
    vision,
)
from deltahalt.cli.base import log, out
from deltahalt.errors import DeltahaltError, DeltahaltWarning

INTERRUPTED = 130  # the exit status after Ctrl-C, as Typer returns it
UsageError: Any = typer.BadParameter.__mro__[1]  # Typer has no public name for it
PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Ask": (ask.run, ask.demo, look.look, view.view),
    "Measure": (
        speed.bench,
        served.bench_vllm,
        benchmarks.evaluate,
        accuracy.sweep,
        shapes.shapes,
        embed.embed,
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
        out.print(f"deltahalt {__version__}")
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
    """Run the command; an error or a wrong option becomes one line on stderr and exit status 2, Ctrl-C 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters of an answer
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            status = app(standalone_mode=False, prog_name="deltahalt")
    except DeltahaltError as error:
        _fail(str(error), error)
    except UsageError as error:
        command = "deltahalt" if error.ctx is None else error.ctx.command_path
        _fail(f"{error.format_message()} (see {command} --help)", error)
    if status == INTERRUPTED:
        log.print("deltahalt: interrupted", style="red")
    raise SystemExit(status or 0)


def _say(message: Warning | str, style: str) -> None:
    """Show one line on stderr."""
    log.print(f"deltahalt: {message}".replace("\n", " "), style=style, soft_wrap=True)


def _fail(message: str, error: Exception) -> None:
    """Show one line on stderr, and exit with status 2."""
    _say(message, "red")
    raise SystemExit(2) from error


def _show_warning(usual: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any) -> None:
    """Show our own warnings as one line on stderr, and others as usual."""
    if issubclass(kind, DeltahaltWarning):
        _say(message, "yellow")
    else:
        usual(message, kind, *where)
