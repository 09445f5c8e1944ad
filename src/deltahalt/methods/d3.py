"""D3: a generated token runs through fewer layers than the token before it."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.errors import PolicyError
from deltahalt.methods.base import Method
from deltahalt.policies import Dense


@dataclass(frozen=True, kw_only=True)
class D3(Method):
    """Generate token i with floor(L * alpha^i) of the L layers, but never with fewer than the core layers.

    The prefill runs through all layers and gives token 0. A later call of several tokens, such as a next question, is a
    prompt: it runs through all layers, and i starts at 0 again. The power law is the paper's, and so is the core of
    layers at both ends, between which layers are skipped. Three choices are ours, since there is no public code: layers
    in the middle are skipped first, so that each token's layers are among those of the token before; token 0 is the one
    from the prefill; and the defaults.

    Attributes:
        alpha: Decay of the number of layers per token, in (0, 1]; 1 runs all layers.
        core: Layers that always run, half of them at either end: a number (int, 1 or more), or a fraction of the L
            layers (float, in (0, 1]).

    Raises:
        PolicyError: For an option out of range.

    Source:
        D3 (arXiv 2503.08524).

    Example:
        >>> from deltahalt.methods.registry import format_method
        >>> method = D3(alpha=0.98)
        >>> format_method(method)
        'd3:alpha=0.98'
        >>> [len(method.depth(token, layers=32)) for token in (1, 10, 100)]
        [31, 26, 16]
    """

    name: ClassVar[str] = "d3"
    summary: ClassVar[str] = "generated token i runs through floor(L * alpha^i) layers"
    source: ClassVar[str] = "D3 (arXiv 2503.08524)"
    stage: ClassVar[str] = "decode"
    by_token: ClassVar[bool] = True

    alpha: float = 0.99
    core: float | int = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise PolicyError(f"alpha is {self.alpha!r}; it must lie in (0, 1]")
        if not 0 < self.core <= (math.inf if isinstance(self.core, int) else 1):
            raise PolicyError(
                f"core is {self.core!r}; give a number of layers >= 1 or a fraction of the layers in (0, 1]"
            )

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        self.depth(1, config.get_text_config().num_hidden_layers)

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        return halting(model, Dense(), depth=self.depth)

    def depth(self, token: int, layers: int) -> list[int]:
        """The layers, ascending, that generate token number `token` >= 1 in a model of `layers`. Raises PolicyError."""
        core = self.core if isinstance(self.core, int) else max(1, math.floor(self.core * layers))
        if core > layers:
            raise PolicyError(f"core is {core}, but the model has {layers} layers: set core to {layers} or less")
        run = max(core, math.floor(layers * self.alpha**token))
        return [*range((run + 1) // 2), *range(layers - run // 2, layers)]
