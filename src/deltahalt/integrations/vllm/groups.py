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
    """The groups of a model whose shallow layers hold all tokens of a prompt.

    shallow, deep: number of layers of each kind.
    """

    shallow: int
    deep: int

    @property
    def size(self) -> int:
        """Number of layers in each group, as vLLM chooses it."""
        few, many = sorted((self.shallow, self.deep))
        return many if many < 1.5 * few else few

    @property
    def of_shallow(self) -> int:
        """Number of groups of shallow layers."""
        return ceil(self.shallow / self.size)

    @property
    def of_deep(self) -> int:
        """Number of groups of deep layers."""
        return ceil(self.deep / self.size)

    def memory(self, share: float) -> float:
        """Memory of a prompt, as a share of that without these groups.

        share: of the prompt's tokens, those that deep layers hold.
        """
        return self.size * (self.of_shallow + self.of_deep * share) / (self.shallow + self.deep)

    def problem(self, share: float) -> str | None:
        """Why these groups are not worth it, where a usual prompt has such a share; None if they are."""
        count = self.of_shallow + self.of_deep
        if count > MOST_GROUPS:
            return (
                f"with {self.shallow} layers that hold all tokens and {self.deep} others vLLM would make {count} "
                f"groups of layers, and more than {MOST_GROUPS} take time in each step"
            )
        if self.memory(share) > MOST_MEMORY:
            return f"a prompt that halts would take {self.memory(share):.0%} of the memory"
        return None
