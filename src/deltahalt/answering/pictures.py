"""Answer a question about pictures, with the full model or fewer visual tokens, and measure time, FLOPs and cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from deltahalt.answering.ask import Answer
from deltahalt.answering.documents import check_question, require_room
from deltahalt.answering.picture_inputs import ROOM, picture_inputs
from deltahalt.clock import clock
from deltahalt.loading.models import LoadedVisionModel
from deltahalt.methods.applying import halting
from deltahalt.policies.base import AnyPolicy
from deltahalt.vision.policy import VisionPolicy

if TYPE_CHECKING:
    from PIL.Image import Image


class FirstToken(BaseStreamer):
    """A streamer that stores the time at which the first new token is known. `generate` puts the prompt first."""

    def __init__(self) -> None:
        self.shown, self.known = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        self.shown += 1
        if self.shown == 2:
            self.known = clock()

    def end(self) -> None:
        pass


@torch.inference_mode()
def ask_about_pictures(
    loaded: LoadedVisionModel,
    pictures: Sequence["Image"],
    text: str,
    methods: dict[str, tuple[AnyPolicy, VisionPolicy | None]],
    *,
    max_new_tokens: int = 64,
) -> dict[str, Answer]:
    """Answer one question about pictures greedily, once with each method.

    Args:
        loaded: The model, tokenizer and image processor, from `load_vision`.
        pictures: The pictures, which come before the question in this order.
        text: The question.
        methods: By name, a policy for the decoder, and one for the ViT or None.
        max_new_tokens: Largest number of tokens in an answer.

    Returns:
        The answers by the methods' names. Their FLOPs are those of the prefill, with the ViT's if it has a policy.

    Raises:
        DeltahaltError: What `picture_inputs` and `halting` raise.
    """
    model: Any = loaded.model
    check_question(text)
    inputs = picture_inputs(model, loaded.tokenizer, loaded.image_processor, [pictures], [text])
    require_room(inputs["input_ids"].shape[1], max_new_tokens, model.config, ROOM)
    model(**inputs, logits_to_keep=1)  # so that the first method's time does not include start-up
    prompt, answers = inputs["input_ids"].shape[1], {}
    for name, (policy, vision) in methods.items():
        watch, begin = FirstToken(), clock()
        with halting(model, policy, vision=vision) as halted:
            said = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=watch)[0, prompt:]
        done = clock()
        answers[name] = Answer(
            text=str(loaded.tokenizer.decode(said, skip_special_tokens=True)).strip(),
            prompt_tokens=prompt,
            new_tokens=len(said),
            lengths=tuple(halted.report.lengths[0]),
            prefill_seconds=watch.known - begin,
            decode_seconds=done - watch.known,
            flops=halted.report.flops + (0 if vision is None else halted.vision_report.flops),
            cache_bytes=halted.report.cache_bytes,
        )
    return answers
