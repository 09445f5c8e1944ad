"""The model: Qwen2-VL's architecture at 7.5 million parameters, its tokenizer, and a batched forward for training.

Hugging Face's vision attention runs one kernel an image. Here all images of a batch have one size, so that one kernel
runs them all, and several questions follow one image, each blind to the others. The weights are the same and
`train.py` checks that the logits are, too.
"""

import random

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from deltahalt.lab.evaluation.pictures.questions import KINDS, ask
from deltahalt.lab.evaluation.pictures.scenes import make_scene

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PATCH, MERGE = 8, 2
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEFORE_IMAGE, AFTER_QUESTION = "<|im_start|>user\n<|vision_start|>", "<|im_end|>\n<|im_start|>assistant\n"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the questions; digits and capitals are tokens of their own."""
    draw = random.Random(0)
    texts = ["user\n", "assistant\n"] * 50
    for seed in range(400):
        scene = make_scene(seed, 256, 256)
        texts += [text for kind in KINDS for pair in [ask(scene, kind, draw)] if pair for text in pair]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}|\p{Lu}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=TEMPLATE,
        model_max_length=2048,
    )


def build_image_processor() -> Qwen2VLImageProcessor:
    """Patches of 8 pixels; images whose sides are multiples of 16 are taken as they are."""
    return Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, min_pixels=16 * 16, max_pixels=1024 * 1024)


def build_model(tokenizer: PreTrainedTokenizerFast, *, tiny: bool = False) -> Qwen2VLForConditionalGeneration:
    """A model with random weights; tiny: two layers each, to try the code out."""
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    layers = 2 if tiny else 12
    text = {
        "vocab_size": -(-len(tokenizer) // 8) * 8,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "max_window_layers": layers,
        "initializer_range": 0.03,
        # of 16 frequencies the columns get the slowest: with a larger base they would not tell 16 columns apart
        "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2 if tiny else 8,
        "embed_dim": 160,
        "num_heads": 5,
        "mlp_ratio": 3,
        "hidden_size": 192,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "initializer_range": 0.03,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.max_new_tokens = 16
    return model


def to_patches(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels uint8 [B, height, width, 3] to patches [B, S, 3 * 2 * 8 * 8], the merged 2 x 2 side by side."""
    batch, height, width, _ = images.shape
    pixels = (images.float() / 255 - mean) / std
    block = PATCH * MERGE
    pixels = pixels.view(batch, height // block, MERGE, PATCH, width // block, MERGE, PATCH, 3)
    pixels = pixels.permute(0, 1, 4, 2, 5, 7, 3, 6)  # block row, block column, row, column, channel, y, x
    pixels = pixels.unsqueeze(6).expand(*pixels.shape[:6], 2, PATCH, PATCH)  # an image is a film of two equal frames
    return pixels.reshape(batch, height * width // PATCH**2, 3 * 2 * PATCH**2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def vision_block(block: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the ViT on [B, S, D]; cos and sin are [S, head size]."""
    batch, length, width = hidden.shape
    qkv = block.attn.qkv(block.norm1(hidden)).view(batch, length, 3, block.attn.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
    hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(batch, length, width))
    return hidden + block.mlp(block.norm2(hidden))


def text_block(layer: nn.Module, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One decoder layer on [B, T, D]; mask is added to scores [B, 1, T, T], cos and sin are [B, 1, T, head size]."""
    batch, length, width = hidden.shape
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key, value = (
        project(normed).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


class Batched(nn.Module):
    """The model on a batch of images of one size, each with several questions.

    Beside the logits it gives guesses of what each visual token shows (a name and a colour): an auxiliary loss that
    stands for the pre-training of a vision tower. These two heads are not part of the saved model.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, names: int, colours: int, prefix: list[int]):
        super().__init__()
        self.model = model
        self.shows = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, names + colours))
        self.names = names
        self.vision_block, self.text_block = vision_block, text_block
        processor = build_image_processor()
        self.register_buffer("mean", torch.tensor(processor.image_mean))
        self.register_buffer("std", torch.tensor(processor.image_std))
        self.register_buffer("prefix", torch.tensor(prefix))
        self.after = model.config.vision_end_token_id

    def compile(self, enabled: bool = True) -> None:
        """Compile one layer of each kind, anew for every size of image; or do without."""
        self.vision_block = torch.compile(vision_block, dynamic=False) if enabled else vision_block
        self.text_block = torch.compile(text_block, dynamic=False) if enabled else text_block

    def see(self, images: Tensor) -> Tensor:
        """Visual tokens [B, n, D] of images uint8 [B, height, width, 3]."""
        visual = self.model.model.visual
        patches = to_patches(images, self.mean, self.std)
        hidden = F.linear(patches, visual.patch_embed.proj.weight.flatten(1)).float()
        cos, sin = self._angles(images.shape[1] // PATCH, images.shape[2] // PATCH, visual)
        for block in visual.blocks:
            hidden = self.vision_block(block, hidden, cos, sin)
        return visual.merger.mlp(visual.merger.ln_q(hidden).view(hidden.shape[0], -1, MERGE**2 * hidden.shape[2]))

    def _angles(self, rows: int, columns: int, visual: nn.Module) -> tuple[Tensor, Tensor]:
        size = visual.blocks[0].attn.head_dim
        device = self.mean.device
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        blocks = (rows // MERGE, MERGE, columns // MERGE, MERGE)
        row, column = (at.reshape(blocks).transpose(1, 2).flatten() for at in (row, column))
        speed = 10000.0 ** -(torch.arange(0, size // 2, 2, device=device) / (size // 2))
        angle = torch.cat([row[:, None] * speed, column[:, None] * speed], dim=-1)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()

    def forward(self, images: Tensor, ids: Tensor, segment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, vocabulary] of the questions' tokens; names' and colours' scores of the visual tokens.

        ids, segment [B, T]: the questions in a row and which question a token belongs to, from 1; 0 for padding.
        """
        language = self.model.model.language_model
        batch, (rows, columns) = len(images), (images.shape[1] // PATCH // MERGE, images.shape[2] // PATCH // MERGE)
        seen = self.see(images)
        words = torch.cat([self.prefix.expand(batch, -1), ids.new_full((batch, 1), self.after), ids], dim=1)
        before = len(self.prefix)
        embedded = language.embed_tokens(words)
        hidden = torch.cat([embedded[:, :before], seen.to(embedded.dtype), embedded[:, before:]], dim=1)
        shared = before + rows * columns + 1
        cos, sin = self._text_angles(self._positions(segment, rows, columns))
        mask = self._mask(segment, shared, hidden)
        for layer in language.layers:
            hidden = self.text_block(layer, hidden, mask, cos, sin)
        logits = self.model.lm_head(language.norm(hidden[:, shared:]))
        shown = self.shows(seen)
        return logits, shown[..., : self.names], shown[..., self.names :]

    def _text_angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """M-RoPE: frequencies are shared out among time, row and column. positions is [3, B, T]."""
        config = self.model.config.text_config
        size, rope = config.hidden_size // config.num_attention_heads, config.rope_parameters
        speed = rope["rope_theta"] ** -(torch.arange(0, size, 2, device=positions.device) / size)
        parts = (positions[..., None] * speed).split(rope["mrope_section"], dim=-1)
        angle = torch.cat([part[plane] for plane, part in enumerate(parts)], dim=-1)
        angle = torch.cat([angle, angle], dim=-1)[:, None]
        return angle.cos(), angle.sin()

    def _positions(self, segment: Tensor, rows: int, columns: int) -> Tensor:
        """M-RoPE's planes [3, B, T]: every question begins right behind the image."""
        batch, device = len(segment), segment.device
        before = len(self.prefix)
        start = torch.arange(before, device=device).expand(3, -1)
        row = torch.arange(rows, device=device).repeat_interleave(columns)
        column = torch.arange(columns, device=device).repeat(rows)
        image = torch.stack([torch.zeros_like(row), row, column]) + before
        after = before + max(rows, columns)
        shared = torch.cat([start, image, torch.full((3, 1), after, device=device)], dim=1)
        index = torch.arange(segment.shape[1], device=device).expand(batch, -1)
        new = F.pad(segment[:, 1:] != segment[:, :-1], (1, 0), value=True)
        begin = torch.where(new, index, 0).cummax(dim=1).values
        return torch.cat([shared[:, None].expand(-1, batch, -1), (after + 1 + index - begin).expand(3, -1, -1)], dim=2)

    @staticmethod
    def _mask(segment: Tensor, shared: int, hidden: Tensor) -> Tensor:
        """0 where a token may look and -inf elsewhere, [B, 1, T, T]: the image, and its own question up to itself."""
        whole = F.pad(segment.long(), (shared, 0), value=-1)
        same = whole[:, :, None] == whole[:, None, :]
        causal = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
        sees = causal & (same | (whole == -1)[:, None, :])
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
        return torch.zeros(same.shape, dtype=dtype, device=same.device).masked_fill(~sees, float("-inf"))[:, None]
