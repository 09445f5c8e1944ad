"""What the commands share: two consoles, progress on them, and options that several commands have."""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

# Control characters but tab and line feed, and lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class LiteralConsole(Console):
    """A console that prints every string as it is, in tables too: no markup, no emoji codes, no terminal controls."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text; what cannot be printed is shown as an escape, such as \\x1b."""
        shown = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
        return super().render_str(shown, **options | {"markup": False, "emoji": False, "highlight": False})


out, log = LiteralConsole(), LiteralConsole(stderr=True)


def status(what: str) -> Status:
    """A spinner on stderr while something long goes on."""
    return log.status(log.render_str(what))


def progress() -> Progress:
    """A progress bar on stderr, gone when it is done."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=log, transient=True)


def measured(
    what: str, total: int, measure: Callable[..., Iterator[Any]], show: Callable[[list[Any]], None]
) -> list[Any]:
    """Run `measure` under a progress bar of `total` steps, show its rows by `show`, and return them.

    After Ctrl-C, `show` gets the rows so far.
    """
    rows: list[Any] = []
    try:
        with progress() as bar:
            task = bar.add_task(what, total=total)
            rows.extend(measure(tick=lambda: bar.advance(task)))
    finally:
        if rows:
            show(rows)
    return rows


# The meaning of the column `speedup` in every table of policies.
REFERENCE = (
    "speedup: FLOPs until the first new token, the full model's divided by the policy's, for a model of Qwen2.5-7B's "
    "shape and a prompt of 16,384 tokens"
)

# Bounds of what is counted: far above any use, so that a slip of the keyboard is refused before anything runs.
MOST_TOKENS, MOST_SAMPLES, MOST_REPEATS, MOST_BATCH = 10_000_000, 1_000_000, 1_000, 4_096
MOST_CHARACTERS = 50_000_000
MOST_SEED = 2**32 - 1  # NumPy takes no larger one

ModelOption = Annotated[str, typer.Option(help="Hub id, local folder, .gguf file, or smollm2-135m.")]
PolicyOption = Annotated[
    str,
    typer.Option(
        help="auto, auto-query-free, a profile.json, or name:option=value,... joined by +. See `deltahalt policies`."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU if there is one.")]
DeviceMapOption = Annotated[str | None, typer.Option(help="Spread the model over devices, such as auto.")]
AttentionOption = Annotated[str | None, typer.Option(help="sdpa, eager, or flash_attention_2, _3 or _4.")]
MinPromptOption = Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Leave shorter prompts whole.")]
NewTokensOption = Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer.")]
LimitOption = Annotated[int | None, typer.Option(min=1, max=MOST_SAMPLES, help="Use the first samples only.")]
CharactersOption = Annotated[
    int | None, typer.Option(min=1, max=MOST_CHARACTERS, help="Length of a generated prompt; by default 12,000.")
]
SampleSeedOption = Annotated[
    int | None, typer.Option(min=0, max=MOST_SEED, help="Draws the generated samples; by default 0.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite a file that this command did not write.")]
