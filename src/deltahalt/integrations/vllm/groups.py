"""How vLLM groups layers that hold different tokens, and what that saves.

Layers of a group have their blocks in common. A block has the same size in all groups, so each group has the same
number of layers, and some of these are padding.
"""

from dataclasses import dataclass
from math import ceil

MOST_GROUPS = 16  # for each, vLLM prepares every step once more
MOST_MEMORY = 0.9  # of a halted prompt: above it, whole prompts would pay for little


@dataclass(frozen=True)
class Groups:
    """The groups of a model's layers.

    full: number of layers whose blocks are for all tokens of a prompt. halted: number of those whose blocks are for the
    tokens that stay.
    """

    full: int
    halted: int

    @classmethod
    def best(cls, shallow: int, deep: int, share: float) -> "Groups":
        """The groups in which a prompt takes the least memory, to a percent; of equal ones the fewest.

        Some deep layers may have blocks for all tokens, where that makes groups larger or leaves less padding.

        shallow: number of layers that hold all tokens of a prompt. deep: number of others, which hold a share of them.
        """
        every = (cls(shallow + joined, deep - joined) for joined in range(deep))
        return min(every, key=lambda one: (one.count > MOST_GROUPS, round(one.memory(share), 2), one.count))

    @property
    def size(self) -> int:
        """Number of layers in each group, as vLLM chooses it."""
        few, many = sorted((self.full, self.halted))
        return many if many < 1.5 * few else few

    @property
    def count(self) -> int:
        """Number of groups."""
        return ceil(self.full / self.size) + ceil(self.halted / self.size)

    def memory(self, share: float) -> float:
        """Memory of a prompt, as a share of that without these groups.

        share: of the prompt's tokens, those that stay.
        """
        held = ceil(self.full / self.size) + ceil(self.halted / self.size) * share
        return self.size * held / (self.full + self.halted)

    def problem(self, share: float) -> str | None:
        """Why these groups are not worth it, where a usual prompt has such a share; None if they are."""
        if self.count > MOST_GROUPS:
            return f"vLLM would make {self.count} groups of layers, and more than {MOST_GROUPS} take time in each step"
        if self.memory(share) > MOST_MEMORY:
            return f"a prompt that halts would take {self.memory(share):.0%} of the memory"
        return None
