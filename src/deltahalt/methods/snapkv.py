"""SnapKV as published: a full prefill, after which each layer keeps the entries that the last tokens attend to."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from deltahalt.engine.halted import Halted
from deltahalt.errors import InputError, PolicyError, UnsupportedError
from deltahalt.methods.base import Ends, Method, Prompts


@dataclass(frozen=True, kw_only=True)
class SnapKV(Method):
    """Drop a share of every layer's K/V after the prefill, each key head its own: kvpress's `SnapKVPress`.

    pruning_ratio: the share, in [0, 1); kvpress's compression_ratio. window: last tokens that are asked, and kept.
    kernel: odd width of the pooling. Raises PolicyError on settings out of range.
    """

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "a full prefill, then the K/V that the last window attends to (kvpress)"
    source: ClassVar[str] = "SnapKV (arXiv 2404.14469), by kvpress"
    stage: ClassVar[str] = "KV"

    pruning_ratio: float = 0.667
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruning_ratio < 1:
            raise PolicyError(f"pruning_ratio is {self.pruning_ratio!r}; it must lie in [0, 1)")
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise PolicyError(f"window is {self.window} and kernel {self.kernel}: give 1 or more, and an odd number")

    def shorten(self, model: Any, tokenizer: Any, prompts: Prompts, ends: Sequence[Ends | None]) -> Prompts:
        """The prompts as they are. Raises InputError for one that the window covers."""
        shortest = int(prompts["attention_mask"].sum(dim=1).min())
        if shortest <= self.window:
            raise InputError(
                f"the prompt ({shortest} tokens) must be longer than snapkv's window ({self.window}): set window below "
                f"{shortest}"
            )
        return prompts

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        if find_spec("kvpress") is None:
            raise UnsupportedError(
                f"{self.name} is kvpress's, and kvpress is not installed: run `make kvpress-env`, then use "
                ".venv-kvpress/bin/deltahalt, or pip install 'deltahalt[kvpress]'"
            )

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        """Raises UnsupportedError without kvpress, and for what its press cannot do: padding, sliding windows."""
        self.check(model.config)
        from kvpress import SnapKVPress  # noqa: PLC0415 (an extra)

        from deltahalt.integrations.kvpress import DeltaPress  # noqa: PLC0415

        press = SnapKVPress(self.pruning_ratio, window_size=self.window, kernel_size=self.kernel)
        return DeltaPress(compression_ratio=0.0, then=press)(model)
