"""A row of `deltahalt eval`."""

from typing import Any

from deltahalt.lab.rows.eval import EvalRow

WORDS = ("model", "halted_kv", "dtype", "device", "machine", "version", "deltahalt", "lm_eval", "transformers", "torch")
NUMBERS = ("min_prompt_tokens", "batch_size", "max_length", "processes", "seed")


def scored(policy: str, value: float, **fields: Any) -> EvalRow:
    spent = {"prefill_seconds": 8.0, "generation_seconds": 4.0, "prompt_tokens": 990, "new_tokens": 10}
    own = {"task": "needle", "metric": "4096", "stderr": None, "samples": 3, "seconds": 13.0, "chat_template": False}
    rest = dict.fromkeys(WORDS, "x") | dict.fromkeys(NUMBERS, 1) | {"peak_bytes": None}
    return EvalRow(**{"policy": policy, "value": value} | own | rest | spent | fields)
