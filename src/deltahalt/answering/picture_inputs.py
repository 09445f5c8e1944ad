"""Model inputs of the Qwen2-VL family from pictures and questions, with Pillow only.

The processors that Hugging Face provides for this family need torchvision, for videos.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

from deltahalt.answering.documents import require_room, require_unicode
from deltahalt.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image


Place = Literal["before", "after"]  # where a question stands: before its pictures or after them

ROOM = "give fewer or smaller pictures, or less text"
SLIMMEST = 200  # largest ratio of a picture's sides that the image processors of this family take


def require_shape(picture: "Image", name: str) -> None:
    """Raise InputError for a picture that is too slim for the image processor. name: its name in the error."""
    width, height = picture.size
    if max(width, height) > SLIMMEST * min(width, height):
        raise InputError(
            f"{name} has {width:,} x {height:,} pixels, but its aspect ratio may be at most {SLIMMEST}:1: crop it"
        )


def require_family(config: Any) -> None:
    """Raise UnsupportedError for a model whose image inputs differ from those of Qwen2-VL."""
    merges = hasattr(getattr(config, "vision_config", None), "spatial_merge_size")
    if not (merges and hasattr(config, "image_token_id")):
        raise UnsupportedError(
            f"{config.model_type} is not supported here, since its image inputs differ from those of Qwen2-VL: use a "
            "Qwen2-VL, Qwen2.5-VL or Qwen3-VL model"
        )


def picture_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    pictures: Sequence[Sequence["Image"]],
    questions: Sequence[str],
    place: Place = "after",
) -> BatchFeature:
    """Return inputs of `generate`: one left-padded row per question, with its pictures. place: of the question.

    Raises UnsupportedError for a model that takes pictures in another form. Raises InputError if a question has no
    pictures or is not valid Unicode, a picture is too slim, the chat template lacks a placeholder for a picture, or a
    prompt is longer than the model takes.
    """
    require_family(model.config)
    if len(pictures) != len(questions) or not all(pictures):
        raise InputError(
            f"pictures are given for {sum(map(bool, pictures))} of {len(questions)} questions: give each of the "
            f"{len(questions)} its own"
        )
    for text in questions:
        require_unicode(text, "the question")
    for number, picture in enumerate((picture for own in pictures for picture in own), 1):
        require_shape(picture, f"picture {number}")
    inputs = image_processor([picture for own in pictures for picture in own], return_tensors="pt")
    counts = iter((inputs["image_grid_thw"].prod(dim=1) // image_processor.merge_size**2).tolist())
    prompts = [
        _prompt(model, tokenizer, text, [next(counts) for _ in own], place)
        for own, text in zip(pictures, questions, strict=True)
    ]
    inputs.update(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False))
    require_room(inputs["input_ids"].shape[1], 0, model.config, ROOM)
    inputs.pop("token_type_ids", None)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    return inputs.to(model.device)


def _prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, counts: list[int], place: Place
) -> str:
    """Return the chat, with one placeholder for each visual token of each picture."""
    images, text = [{"type": "image"} for _ in counts], {"type": "text", "text": question}
    content = [text, *images] if place == "before" else [*images, text]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    placeholder = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    first, *others = chat.split(placeholder)
    if len(others) != len(counts):
        raise InputError(
            f"the chat template wrote {placeholder} {len(others)} times for {len(counts)} pictures: give a tokenizer "
            "whose template writes it once for each picture"
        )
    return first + "".join(placeholder * count + text for count, text in zip(counts, others, strict=True))
