"""What the engine asks of a vision-language model around its decoder; a family file states what differs."""

from typing import Any, ClassVar

import torch

from deltahalt.kinds import IMAGE, VIDEO

Module = Any  # the host's module that puts image features among the embeddings


class VisionFamily:
    """A host that finds the places of image features, the placeholders, with a method of its base model.

    A subclass names the `model_types` that it serves (as in `config.model_type`) and overrides what differs.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    def finder(self, base: Module) -> str:
        """Name of the base model's method that finds the placeholders."""
        return "get_placeholder_mask"

    def kinds(self, base: Module, found: Any, arguments: dict[str, Any]) -> torch.Tensor:
        """What each token is (see `deltahalt.kinds`), [B, T].

        found: what the finder returned for `arguments`: a mask [B, T, 1 or D] of images, or one of images and one of
        videos.
        """
        masks = found if isinstance(found, tuple) else (found,)
        kinds = [kind * mask[..., 0].long() for kind, mask in zip((IMAGE, VIDEO), masks, strict=False)]
        return torch.stack(kinds).amax(dim=0)

    def divert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What of the base model's `arguments` goes to `engine.call.prepare` past the host; may change them."""
        return {}
