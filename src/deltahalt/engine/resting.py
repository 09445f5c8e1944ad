"""Halted tokens that may run on in a later turn."""

from dataclasses import dataclass, replace

from deltahalt.engine.stream import TokenStream
from deltahalt.policies.base import Stage


@dataclass(frozen=True)
class Resting:
    """The tokens of a cache that halted at `stage`, with their states where they halted."""

    stage: Stage
    tokens: TokenStream

    def followed_by(self, tokens: TokenStream) -> "Resting":
        """These, and tokens of a later turn that halted at the same stage."""
        return replace(self, tokens=tokens.preceded_by(self.tokens))
