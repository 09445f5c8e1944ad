"""Replacement of a host's callables by a `with` block, for calls from the block's own context (see `contextvars`).

A context belongs to a thread, or to a task of asyncio. A new thread starts outside every block, unless it runs in a
copy of the context (`contextvars.copy_context`). A call that started inside a block ends inside it, even if the block
is left before that.
"""

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from torch import nn

Place = tuple[nn.Module | ModuleType, str]  # a module of a model or of Python, and the name of one of its callables
Answer = Callable[..., Any]  # (block, original, *args, **kwargs) -> the return value of the callable

_open: ContextVar[tuple["Block", ...]] = ContextVar("deltahalt_open_blocks", default=())
_lock = threading.RLock()


class Block:
    """A `with` block, or one call that started in it. It runs the functions in `places` for calls from its context.

    marks: the base model whose visual features may be marked as dropped (NaN), or None. handed: values that modules
    pass to each other past the host during one call; None for the `with` block itself. missed: whether a module in
    `places` was called from another context, so that no block replaced the call.
    """

    def __init__(
        self,
        places: Mapping[Place, Answer],
        *,
        marks: nn.Module | None = None,
        handed: dict[str, Any] | None = None,
    ) -> None:
        self.places, self.marks, self.handed = places, marks, handed
        self.stand_ins: list[StandIn] = []
        self.open = self.missed = False

    @contextmanager
    def opened(self) -> Iterator["Block"]:
        """Replace calls inside the `with` block. After it, and after its last call, the modules are as before."""
        self.stand_ins = _acquire(self.places, self, self.stand_ins)
        self.open = True
        _open.set((*reversed(list(open_blocks())), self))
        try:
            yield self
        finally:
            self.open = False
            _open.set(tuple(block for block in _open.get() if block is not self))
            _release(self.stand_ins, self)

    def begun(self, **handed: Any) -> "Block":
        """Return the Block of one call that starts in this block, or in a call inside it."""
        call = Block(self.places, marks=self.marks, handed=(self.handed or {}) | handed)
        call.stand_ins = self.stand_ins
        return call


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep every open block of this context open for one call, even if the block is left before the call ends."""
    with ExitStack() as calls:
        for block in reversed(list(open_blocks())):
            calls.enter_context(block.begun().opened())
        yield


def open_blocks() -> Iterator[Block]:
    """Return the open blocks of this context, the innermost first."""
    return (block for block in reversed(_open.get()) if block.open)


def is_halting(module: nn.Module) -> bool:
    """Return whether an open block of this context replaces a callable of the module."""
    return any(target is module for block in open_blocks() for target, _ in block.places)


def forward_of(module: nn.Module) -> Place:
    """Return the place of the module's forward, which is inside the wrapper of an accelerate hook if there is one."""
    return module, "_old_forward" if hasattr(module, "_hf_hook") else "forward"


class StandIn:
    """A callable that replaces one of a module. Copies of the module get the original callable.

    own: the instance's attribute before; None if the callable was a method of its class. blocks: those that use it.
    """

    def __init__(self, module: nn.Module | ModuleType, name: str) -> None:
        self.module, self.name = module, name
        self.own, self.original = module.__dict__.get(name), getattr(module, name)
        self.blocks: list[Block] = []
        functools.update_wrapper(self, self.original)
        self.__self__ = module  # as in a bound method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        place = self.module, self.name
        block = next((block for block in open_blocks() if place in block.places), None)
        if block is None:
            for other in tuple(self.blocks):
                other.missed = True
            return self.original(*args, **kwargs)
        return block.places[place](block, self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.own is not None:
            return copy.deepcopy(self.own, memo)
        return getattr(copy.deepcopy(self.module, memo), self.name)  # the copy's own method

    def __reduce__(self) -> tuple[Any, ...]:
        if self.own is not None:
            return _same, (self.own,)
        return getattr, (self.module, self.name)


def _same(value: Any) -> Any:
    return value


def _acquire(places: Iterable[Place], block: Block, known: list[StandIn]) -> list[StandIn]:
    """What stands at the places, from now on for `block`, too. known: what did so for the block that it began in."""
    with _lock:
        standing = [stand_in for stand_in in known if stand_in.blocks]
        if not standing:
            standing = [_at(module, name) for module, name in places]
        for stand_in in standing:
            stand_in.blocks.append(block)
        return standing


def _at(module: nn.Module | ModuleType, name: str) -> StandIn:
    """What stands at a place, which is new if nothing does, or if somebody else has put something over it."""
    stand_in = module.__dict__.get(name)
    if not isinstance(stand_in, StandIn):
        stand_in = StandIn(module, name)
        setattr(module, name, stand_in)
    return stand_in


def _release(stand_ins: list[StandIn], block: Block) -> None:
    """Take away what stood for `block` alone."""
    with _lock:
        for stand_in in reversed(stand_ins):
            stand_in.blocks.remove(block)
            if stand_in.blocks or stand_in.module.__dict__.get(stand_in.name) is not stand_in:
                continue
            if stand_in.own is None:
                delattr(stand_in.module, stand_in.name)
            else:
                setattr(stand_in.module, stand_in.name, stand_in.own)
