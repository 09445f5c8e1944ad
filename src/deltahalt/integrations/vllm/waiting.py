"""What shallow layers computed of prompts whose last chunk has not come yet."""

from collections.abc import Iterable

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.plan import Row

States = dict[str, torch.Tensor]  # by name, states [n, D] in the layer that decides


class Waiting:
    """The states of prompts that come in chunks, from a prompt's first chunk to its last, by request.

    Each prompt has tensors for all tokens after its prefix, n of them, which its chunks fill. One that is finished,
    aborted or preempted has to be forgotten; recomputed, it starts with its first token.
    """

    def __init__(self) -> None:
        self._states: dict[str, States] = {}
        self._filled: dict[str, int] = {}  # number of tokens whose states are there

    def __len__(self) -> int:
        return len(self._states)

    def add(self, row: Row, states: States) -> None:
        """Keep the states of the next tokens of a request's prompt. Raises UnsupportedError if earlier ones lack."""
        begin, end = _places(row)
        if end <= 0:
            return
        count = row.prompt - row.prefix
        if begin == 0:
            empty = {name: part.new_empty((count, part.shape[-1])) for name, part in states.items()}
            self._states[row.name] = empty
        elif self._filled.get(row.name) != begin or len(next(iter(self._states[row.name].values()))) != count:
            raise UnsupportedError(
                f"vLLM ran tokens {row.computed} to {row.end} of a prompt of {row.prompt}, but states of those before "
                'them are not there: for a prompt that grows while it is served, write {"deltahalt": "off"}'
            )
        for name, part in states.items():
            self._states[row.name][name][begin:end] = part
        self._filled[row.name] = end

    def whole(self, row: Row, states: States) -> States:
        """The states of all n tokens, [n, D] each, with the last ones' `states`. Raises as `add`."""
        if _places(row)[0] == 0:
            return states
        self.add(row, states)
        del self._filled[row.name]
        return self._states.pop(row.name)

    def forget(self, names: Iterable[str]) -> None:
        """Free what is kept of these requests, if anything is."""
        for name in names:
            self._states.pop(name, None)
            self._filled.pop(name, None)


def _places(row: Row) -> tuple[int, int]:
    """Where a step's tokens of a prompt start and end among those after its prefix; the end is not above 0 if none."""
    return max(0, row.computed - row.prefix), min(row.end, row.prompt) - row.prefix
