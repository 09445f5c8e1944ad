"""Whether prompts get the same tokens in vLLM as in the core engine: rows of `recipes/vllm_tokens.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table


@dataclass(frozen=True)
class AgreementRow(RanRow):
    """Prompts that vLLM served at once, and that the core engine ran one by one, both greedily.

    source: what they are, "pages" or "shapes", as in the recipe. mode: as in `ServingRow`. vllm: its version. chunk:
    number of tokens that a step of vLLM runs at most. in_flight: number of requests that it runs at once at most.
    prompts: number of them, `halted` of which halt. shortest, longest: number of tokens in a prompt. new_tokens: number
    that each gets at most. same: number of prompts whose tokens are the same.
    """

    kind: ClassVar[str] = "agreement"

    model: str
    policy: str
    source: str
    mode: str
    vllm: str
    chunk: int
    in_flight: int
    prompts: int
    halted: int
    shortest: int
    longest: int
    new_tokens: int
    same: int


def markdown(rows: Sequence[AgreementRow]) -> str:
    """Return the rows as a Markdown table."""
    columns = {
        "model": [row.model for row in rows],
        "policy": [f"`{row.policy}`" for row in rows],
        "mode": [row.mode for row in rows],
        "vLLM": [row.vllm for row in rows],
        "machine": [row.machine for row in rows],
        "prompts": [f"{row.prompts} {row.source}, {row.halted} of which halt" for row in rows],
        "tokens in a prompt": [f"{row.shortest:,} to {row.longest:,}" for row in rows],
        "in chunks of": [f"{row.chunk:,}" for row in rows],
        "tokens of each": [f"{row.new_tokens}" for row in rows],
        "with the core engine's tokens": [f"{row.same}" for row in rows],
    }
    return table(columns)
