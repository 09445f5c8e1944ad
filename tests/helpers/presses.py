"""What the tests of kvpress share: a context and questions on it, and presses at work."""

from typing import Any

import kvpress
import torch
from transformers import DynamicCache

from deltahalt.integrations.kvpress import HaltingPipeline
from helpers.tiny import prompts

TOLERANCE = 1e-5
SMALL: dict[str, Any] = {"compression_ratio": 0.6, "start_ratio": 0.2, "keep_first_n": 2, "keep_last_n": 3}
CONTEXT = "A harbour master signed the report in spring, when the ice was gone."
QUESTIONS = ["Who signed?", "In which season was it, and why then?", ""]
IDS = prompts(40)[0]


def kv_press(name: str, **settings: Any) -> Any:
    return getattr(kvpress, name)(**settings)


def follower(name: str) -> Any:
    return kv_press(name, compression_ratio=0.5, **{"window_size": 4} if name == "SnapKVPress" else {})


def pipe(model: Any, tokenizer: Any, kind: Any = HaltingPipeline) -> Any:
    return kind(model=model, tokenizer=tokenizer, device="cpu")


def encoded(tokenizer: Any) -> torch.Tensor:
    """The context as kvpress's pipeline reads it, [1, n]."""
    return tokenizer.encode(tokenizer.bos_token + CONTEXT, return_tensors="pt", add_special_tokens=False)


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


def prefilled(model: Any, press: Any, cache: DynamicCache | None = None, **options: Any) -> Any:
    """The cache of a prefill as kvpress's users write it, and the halted model."""
    cache = DynamicCache() if cache is None else cache
    with press(model) as halted, torch.no_grad():
        model(IDS, past_key_values=cache, **options)
    return cache, halted


class Listener:
    """Notes what goes into a model's calls, [1, n] tokens each, and the logits that come out."""

    def __init__(self, model: Any) -> None:
        self.tokens: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.hook = model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.tokens.append(kwargs["input_ids"])
        self.logits.append(output.logits)

    def questions(self, steps: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """By question, its calls: the question, then steps - 1 tokens of the answer."""
        calls = list(zip(self.tokens, self.logits, strict=True))
        return [calls[first : first + steps] for first in range(0, len(calls), steps)]
