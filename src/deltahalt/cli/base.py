"""What the commands share: two consoles, and options that several commands have."""

from typing import Annotated

import typer
from rich.console import Console

out, log = Console(), Console(stderr=True)

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
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]
HaltedKVOption = Annotated[str, typer.Option(help="K/V of halted tokens in deeper layers: drop or frozen.")]
MinPromptOption = Annotated[int, typer.Option(help="Leave shorter prompts whole.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
