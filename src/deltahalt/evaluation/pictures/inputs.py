"""Pictures and questions to model inputs for the Qwen2-VL family, with Pillow alone.

Hugging Face's own processors of this family need torchvision, for videos.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

from deltahalt.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    pictures: Sequence["Image"],
    questions: Sequence[str],
) -> BatchFeature:
    """What `generate` takes: one question about one picture in each row, padded on the left.

    Raises InputError unless there are as many questions as pictures and the chat template has a place for a picture.
    """
    if len(pictures) != len(questions) or not pictures:
        raise InputError(f"{len(pictures)} pictures and {len(questions)} questions: give one question a picture")
    inputs = image_processor(list(pictures), return_tensors="pt")
    grid = inputs["image_grid_thw"]
    counts = grid.prod(dim=1) // image_processor.merge_size**2
    prompts = [_prompt(model, tokenizer, text, count) for text, count in zip(questions, counts.tolist(), strict=True)]
    inputs.update(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False))
    inputs.pop("token_type_ids", None)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    return inputs.to(model.device)


def _prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, count: int) -> str:
    """The chat, with as many placeholders as the picture has visual tokens."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    placeholder = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    if chat.count(placeholder) != 1:
        raise InputError(
            f"{placeholder} is {chat.count(placeholder)} times in the chat: it must be there once, for a picture"
        )
    return chat.replace(placeholder, placeholder * count)
