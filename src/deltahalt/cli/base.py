"""What the commands share: two consoles, and options that several commands have."""

from typing import Annotated

import typer
from rich.console import Console

out, log = Console(), Console(stderr=True)

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
