"""Inputs made of pictures and questions: placeholders, left padding, errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    set_seed,
)

from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.errors import InputError, UnsupportedError
from helpers.tiny_vision import tiny_vision

SPECIAL = ["<|endoftext|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def parts():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], chat_template=TEMPLATE)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2VLConfig(
        text_config={**sizes, "num_key_value_heads": 2, "vocab_size": 264, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 8},
        vision_start_token_id=1,
        image_token_id=2,
        vision_end_token_id=3,
        video_token_id=263,
    )
    set_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    return model, fast, Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=256, max_pixels=2**20)


def picture(height, width):
    pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_a_row_does_not_depend_on_its_batch_mates(parts):
    pictures, questions = [[picture(32, 64)], [picture(96, 48)]], ["Which?", "How many are there?"]
    rows = [([each], [question]) for each, question in zip(pictures, questions, strict=True)]
    first = []
    for batch in ((pictures, questions), *rows):
        inputs = picture_inputs(*parts, *batch)
        options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
        steps = parts[0].generate(**inputs, **options, output_logits=True, return_dict_in_generate=True).logits
        first.append(torch.stack(steps, dim=1))
    torch.testing.assert_close(first[0], torch.cat(first[1:]), rtol=0, atol=1e-5)


def test_a_placeholder_for_every_visual_token(parts):
    inputs = picture_inputs(*parts, [[picture(32, 64)], [picture(96, 48)]], ["a", "bc"])
    assert (inputs["input_ids"] == 2).sum(dim=1).tolist() == [2 * 4, 6 * 3]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [8 + 2 + 1, 18 + 2 + 2]
    assert parts[1].decode(inputs["input_ids"][1, -3:]) == "<|vision_end|>bc"


def test_several_pictures_come_before_their_question(parts):
    inputs = picture_inputs(*parts, [[picture(32, 64), picture(96, 48)]], ["bc"])
    assert parts[1].decode(inputs["input_ids"][0]) == "".join(
        f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>{text}" for tokens, text in ((8, ""), (18, "bc"))
    )


@pytest.mark.parametrize("pictures", [[[picture(32, 32)]], [[picture(32, 32)], []]])
def test_each_question_has_pictures(pictures, parts):
    with pytest.raises(InputError, match="give each of the 2 its own"):
        picture_inputs(*parts, pictures, ["a", "b"])


def test_a_model_that_takes_pictures_in_another_form(parts):
    _, tokenizer, processor = parts
    with pytest.raises(UnsupportedError, match="llava is not supported here, since its image inputs differ"):
        picture_inputs(tiny_vision("llava"), tokenizer, processor, [[picture(32, 32)]], ["a"])


def test_a_prompt_that_is_longer_than_the_model_takes(parts, monkeypatch):
    monkeypatch.setattr(parts[0].config.get_text_config(), "max_position_embeddings", 10)
    with pytest.raises(InputError, match=r"has 11 tokens, but the model takes 10: .* pictures, or less text"):
        picture_inputs(*parts, [[picture(32, 64)]], ["a"])


def test_a_chat_template_without_pictures(parts):
    model, tokenizer, processor = parts
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, chat_template="{{ 'text' }}")
    with pytest.raises(InputError, match="0 times"):
        picture_inputs(model, plain, processor, [[picture(32, 32)]], ["a"])
