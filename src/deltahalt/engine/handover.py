"""What the modules around a decoder know of a call, and their host does not pass on to it."""

import inspect
from typing import Any

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.host.blocks import Answer, Block, open_blocks
from deltahalt.host.families.vision import Module, VisionFamily
from deltahalt.host.heads import head_of

WANTED = "wanted"  # the key of what the outer model reads


def through_model(model: Module) -> Answer:
    """The forward of the outer model: it refuses a loss, and hands on which final states it reads.

    Raises UnsupportedError for a model that reads those of every token.
    """
    names, wanted = list(inspect.signature(model.forward).parameters), head_of(model)

    def forward(block: Block, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("labels") is not None:
            raise UnsupportedError("labels are not supported: halted tokens have no logits to take a loss of")
        with block.begun(**{WANTED: wanted(given)}).opened():
            return original(*args, **kwargs)

    return forward


def through_base(base: Module, family: VisionFamily) -> Answer:
    """The forward of a base model, which puts image features among the embeddings."""
    names = list(inspect.signature(base.forward).parameters)

    def forward(block: Block, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        marks = any(each.marks is base for each in open_blocks())
        with block.begun(**family.divert(given), marks=marks).opened():
            return original(**given)

    return forward


def finding(base: Module, family: VisionFamily) -> Answer:
    """The base model's method that finds placeholders: it hands on what it finds, first images, then videos."""
    signature = inspect.signature(getattr(base, family.finder(base)))

    def find(block: Block, original: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if block.handed is not None:  # within the base model's forward
            kinds = family.kinds(base, found, signature.bind(*args, **kwargs).arguments)
            before = block.handed.get("kinds")
            block.handed["kinds"] = kinds if before is None else torch.maximum(before, kinds)
        return found

    return find
