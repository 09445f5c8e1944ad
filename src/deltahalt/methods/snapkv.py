"""SnapKV as published: after a full prefill, each layer keeps the cache entries that the last tokens attend to."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from deltahalt.engine.halted import Halted
from deltahalt.errors import InputError, PolicyError, UnsupportedError
from deltahalt.methods.base import Ends, Method, Prompts
from deltahalt.policies import Dash
from deltahalt.policies.options import require_at_least, require_odd


@dataclass(frozen=True, kw_only=True)
class SnapKV(Method):
    """Keep in each layer and key head, after a full prefill, the K/V that the last tokens attend to most.

    It runs `SnapKVPress` of the package kvpress.

    Attributes:
        pruning_ratio: Share of the cache entries of every layer that is dropped, in [0, 1): kvpress's
            compression_ratio.
        window: Number of last tokens that are the query tokens, 1 or more. Their own K/V are kept. A prompt must be
            longer than this.
        kernel: Width of the moving mean over scores, in tokens; odd. 1 leaves the scores as they are.

    Raises:
        PolicyError: For an option out of range.

    Source:
        SnapKV (arXiv 2404.14469), as kvpress implements it.

    Example:
        >>> from deltahalt.methods.registry import format_method
        >>> method = SnapKV(pruning_ratio=0.5)
        >>> format_method(method)
        'snapkv:pruning_ratio=0.5'
    """

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "after a full prefill, keeps the K/V that the last window attends to (kvpress)"
    source: ClassVar[str] = "SnapKV (arXiv 2404.14469), as kvpress implements it"
    stage: ClassVar[str] = "KV"

    pruning_ratio: float = 0.667
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruning_ratio < 1:
            raise PolicyError(f"pruning_ratio is {self.pruning_ratio!r}; it must lie in [0, 1)")
        require_at_least(self, 1, "window")
        require_odd(self, "kernel")

    def shorten(self, model: Any, tokenizer: Any, prompts: Prompts, ends: Sequence[Ends | None]) -> Prompts:
        """The same prompts. Raises InputError for one that is not longer than the window."""
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
                f"{self.name} needs kvpress, and kvpress is not installed: run `make kvpress-env`, then use "
                ".venv-kvpress/bin/deltahalt, or pip install 'deltahalt[kvpress]'"
            )

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        """Raises UnsupportedError without kvpress, and for padding and sliding windows, which its press refuses."""
        self.check(model.config)
        from kvpress import SnapKVPress  # noqa: PLC0415 (an extra)

        from deltahalt.engine.kv_press import pressed  # noqa: PLC0415 (imports kvpress)

        press = SnapKVPress(self.pruning_ratio, window_size=self.window, kernel_size=self.kernel)
        return pressed(model, Dash(pruning_ratio=0.0), press, "DeltaPress")
