"""D3: the later a token is generated, the fewer layers it runs through."""

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
    """Generate token i with floor(L * alpha^i) of the L layers, and never fewer than the core; the prefill is full.

    alpha: decay, in (0, 1]. core: layers that always run, a number or a fraction of L; half of them at either end.

    The paper's: the power law, and a core of head and tail layers around flexible ones, which are skipped. Ours, since
    there is no public code: which flexible layers go first (those in the middle, so that each token's layers are among
    those of the token before), i = 0 for the token that the prefill gives, and the defaults. A call of several tokens,
    such as a next question, is a prompt: it runs in full, and i begins anew.
    Raises PolicyError on settings out of range.
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
            raise PolicyError(f"core is {self.core!r}; give a number of layers >= 1 or a fraction of them in (0, 1]")

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        self.depth(1, config.get_text_config().num_hidden_layers)

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        return halting(model, Dense(), depth=self.depth)

    def depth(self, token: int, layers: int) -> list[int]:
        """The layers, of so many, that generate token number `token` >= 1, ascending. Raises PolicyError."""
        core = self.core if isinstance(self.core, int) else max(1, math.floor(self.core * layers))
        if core > layers:
            raise PolicyError(f"core is {core}, but the model has {layers} layers")
        run = max(core, math.floor(layers * self.alpha**token))
        return [*range((run + 1) // 2), *range(layers - run // 2, layers)]
