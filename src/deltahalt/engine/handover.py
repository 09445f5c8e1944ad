"""What the decoder of a vision-language model has to know and its host does not tell it."""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch

from deltahalt.host.families.vision import Module, VisionFamily

WANTED = "deltahalt_logits_to_keep"  # carries the outer model's logits_to_keep down to the decoder


class Handover(threading.local):
    """Arguments for the decoder, collected while the base model's forward runs; each thread has its own.

    The base model is the host's module that puts image features among the embeddings. `enter` and `leave` are hooks
    around its forward, `listening` wraps its method that finds the features' places.
    """

    def __init__(self, family: VisionFamily) -> None:
        self.family = family
        self.pending: dict[str, Any] = {}

    def take(self) -> dict[str, Any]:
        """What was collected since the base model's forward began, once."""
        taken, self.pending = self.pending, {}
        return taken

    def enter(self, base: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Forward pre-hook of the base model: keep back what only the decoder is to see."""
        given = (inspect.signature(base.forward).bind_partial(*args).arguments if args else {}) | kwargs
        self.pending = self.family.divert(given)
        if WANTED in given:
            self.pending[WANTED] = given.pop(WANTED)
        return (), given

    def leave(self, *_: Any) -> None:
        """Forward hook of the base model, also after an error: nothing outlives its forward."""
        self.pending = {}

    def listening(self, base: Module) -> Callable[..., Any]:
        """The base model's method that finds placeholders, which notes what it finds: first images, then videos."""
        find = getattr(base, self.family.finder(base))

        @functools.wraps(find)
        def finding(*args: Any, **kwargs: Any) -> Any:
            found = find(*args, **kwargs)
            kinds = self.family.kinds(base, found, inspect.signature(find).bind(*args, **kwargs).arguments)
            before = self.pending.get("kinds")
            self.pending["kinds"] = kinds if before is None else torch.maximum(before, kinds)
            return found

        return finding
