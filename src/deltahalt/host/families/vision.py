"""The interface between the engine and a vision-language model; a family file defines what differs."""

from typing import Any, ClassVar

import torch

from deltahalt.kinds import IMAGE, VIDEO

Module = Any  # the host's base model, which inserts image features into the embeddings


class VisionFamily:
    """A vision-language model whose base model has a method that finds the placeholders of image features.

    A subclass lists its `model_types` (as in `config.model_type`) and overrides what differs.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    def finder(self, base: Module) -> str:
        """Return the name of the base model's method that finds the placeholders."""
        return "get_placeholder_mask"

    def kinds(self, base: Module, found: Any, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the kind of each token (see `deltahalt.kinds`), [B, T].

        found: what the finder returned for `arguments`: a mask [B, T, 1 or D] of images, or a pair of masks, of images
        and of videos.
        """
        masks = found if isinstance(found, tuple) else (found,)
        kinds = [kind * mask[..., 0].long() for kind, mask in zip((IMAGE, VIDEO), masks, strict=False)]
        return torch.stack(kinds).amax(dim=0)

    def divert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the base model's `arguments` that go to `engine.call.prepare` past the host; may change them."""
        return {}
