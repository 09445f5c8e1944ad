"""Pictures and questions to model inputs for the Qwen2-VL family, with Pillow alone.

Hugging Face's own processors of this family need torchvision, for videos.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

from deltahalt.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    pictures: Sequence[Sequence["Image"]],
    questions: Sequence[str],
) -> BatchFeature:
    """What `generate` takes: a row for each question, with its own pictures before it, padded on the left.

    Raises UnsupportedError for a model that takes pictures in another way, and InputError unless there are pictures for
    each question, the chat template has a place for each, and the model takes as long a prompt.
    """
    if not (hasattr(image_processor, "merge_size") and hasattr(model.config, "image_token_id")):
        raise UnsupportedError(f"{model.config.model_type} takes pictures in another way: give a Qwen2-VL or its like")
    if len(pictures) != len(questions) or not all(pictures):
        raise InputError(f"a question is without pictures: give each of the {len(questions)} its own")
    inputs = image_processor([picture for own in pictures for picture in own], return_tensors="pt")
    counts = iter((inputs["image_grid_thw"].prod(dim=1) // image_processor.merge_size**2).tolist())
    prompts = [
        _prompt(model, tokenizer, text, [next(counts) for _ in own])
        for own, text in zip(pictures, questions, strict=True)
    ]
    inputs.update(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False))
    tokens, limit = inputs["input_ids"].shape[1], model.config.get_text_config().max_position_embeddings
    if tokens > limit:
        found = f"the prompt has {tokens} tokens, but the model takes {limit}"
        raise InputError(f"{found}: give fewer or smaller pictures, or less text")
    inputs.pop("token_type_ids", None)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    return inputs.to(model.device)


def _prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, counts: list[int]) -> str:
    """The chat, with as many placeholders as each picture has visual tokens."""
    content = [*({"type": "image"} for _ in counts), {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    placeholder = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    first, *others = chat.split(placeholder)
    if len(others) != len(counts):
        raise InputError(f"{placeholder} is {len(others)} times in the chat: it must be there once for each picture")
    return first + "".join(placeholder * count + text for count, text in zip(counts, others, strict=True))
