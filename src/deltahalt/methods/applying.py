"""The main functions of the library: `halting(model, policy)`, and `applying(model, method)` for every method."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from deltahalt.engine import attach
from deltahalt.engine.attach import find_decoder, sees_images
from deltahalt.engine.halted import Halted
from deltahalt.engine.pieces import check_piece_tokens
from deltahalt.engine.question import question_of
from deltahalt.engine.switch import check_switch
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.methods.base import Asked, Ends, Method, Prompts
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import override, parse_policy, require_policy
from deltahalt.profile import Resolved, resolve
from deltahalt.vision.attach import halted_tower
from deltahalt.vision.policy import VisionPolicy


def halting(
    model: Any,
    policy: AnyPolicy | str,
    *,
    question: Asked | None = None,
    tokenizer: Any = None,
    keep: int | None = None,
    min_prompt_tokens: int = 0,
    timed: bool = False,
    vision: VisionPolicy | str | None = None,
    piece_tokens: int | None = None,
    decode_graphs: bool | None = None,
    fused_kernels: bool | None = None,
) -> AbstractContextManager[Halted]:
    """Halt prompt tokens in every prefill of `model` inside the `with` block.

    Args:
        model: A Hugging Face causal language model, vision-language model, base model or sequence classifier of a known
            family.
        policy: A `Policy` or `Progressive`, or its text (see `parse_policy`). "auto" is the policy that calibration
            chose for this model, "auto-query-free" the one for prompts without their question; the path of a profile
            is the policy in that profile.
        question: What is asked, where you know it: its text as it stands in the prompt, several texts, of which each
            prompt has one or more, or spans of tokens (begin, end). The policy looks for what it is about, wherever it
            stands; its tokens stay active.
        tokenizer: The model's tokenizer, for a question given as text.
        keep: Number of tokens that stay active, in place of the policy's share; None for the policy's own.
        min_prompt_tokens: No token halts in a prompt of fewer tokens; 0 for no limit.
        timed: Measure the seconds of each prefill, which waits for the device.
        vision: A policy of the ViT, or its text: visual tokens also halt inside the ViT. None: they do not.
        piece_tokens: Number of prompt tokens that run through a layer at once, which bounds the memory of its inner
            tensors; results stay the same. None: 16,384 in prompts of more than 32,768 tokens, and all in shorter ones.
        decode_graphs: Whether generated tokens run as CUDA graphs, which equal the full model's decoding up to
            rounding. None: where it is possible; False: never; True: always, with an error where it is not possible.
        fused_kernels: Whether the norms, rotary embedding and gated activations of a prefill run as one kernel each,
            which equal the full model's up to rounding; the package liger-kernel has the latter two. None: on a GPU, in
            prefills in which tokens halt; False: never; True: in every prefill. With autograd, the model's own run.

    Returns:
        A context that yields a `Halted`. Its `report` describes the latest prefill, and its `vision_report` the latest
        run of the ViT. When the block is left, the model is as before.

    Raises:
        UnsupportedError: For a model that deltahalt does not support, or for decode_graphs=True where it is not
            possible.
        PolicyError: For an object that is not a policy, or a policy that does not fit the model or does not read the
            question. A method of another stage needs `applying`.
        InputError: For a profile that does not exist, is of another model, or has no policy of the wanted speed.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes)).eval()
        >>> with torch.no_grad(), halting(model, Dash(start=1, pruning_ratio=0.5)) as halted:
        ...     logits = model(torch.arange(496)[None], logits_to_keep=1).logits
        >>> halted.report.lengths  # of 400 eligible tokens, 200 halt after layer 1; the last layer runs on the last one
        ((496, 496, 296, 1),)
    """
    options = {} if keep is None else {"keep": keep}
    if isinstance(policy, str):
        chosen = parse_policy(resolve_on(model, policy, options).text)
    else:
        chosen = override(require_policy(policy), **options)
    tower = None if vision is None else halted_tower(model, vision)
    asked = None if question is None else question_of(question, tokenizer)
    return attach.halting(
        model,
        chosen,
        min_prompt_tokens=min_prompt_tokens,
        timed=timed,
        tower=tower,
        question=asked,
        piece_tokens=piece_tokens,
        decode_graphs=decode_graphs,
        fused_kernels=fused_kernels,
    )


def resolve_on(model: Any, text: str, options: Mapping[str, Any] = {}) -> Resolved:
    """What a text stands for on a model: see `deltahalt.profile.resolve`, which takes its decoder."""
    decoder = find_decoder(model)
    return resolve(text, decoder, vision=sees_images(model, decoder), options=options)


class Applied:
    """A model under a method, inside the block of `applying`.

    Attributes:
        halted: The engine (`Halted`). Its `report` describes the latest prefill.
        model: The Hugging Face model.
        method: The `Method` that the model runs under.
        tokenizer: The model's tokenizer, or None.
        spent: True FLOPs of the model that chose the tokens of the latest prompts, in a prompt-stage method.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes)).eval()
        >>> ids = torch.arange(496)[None]
        >>> with torch.no_grad(), applying(model, GemFilter(start=1, pruning_ratio=0.5)) as applied:
        ...     short = applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        ...     logits = model(**short, logits_to_keep=1).logits
        >>> short["input_ids"].shape
        torch.Size([1, 296])
        >>> applied.flops == applied.spent + applied.halted.report.flops
        True
    """

    def __init__(self, halted: Halted, model: Any, method: Method, tokenizer: Any) -> None:
        self.halted, self.model, self.method, self.tokenizer = halted, model, method, tokenizer
        self.spent = 0

    @torch.no_grad()
    def shorten(self, prompts: Prompts, ends: Sequence[Ends | None] | None = None) -> Prompts:
        """The prompts to give to the model: a prompt-stage method shortens them, any other leaves them as they are.

        Args:
            prompts: `input_ids` and `attention_mask`, each [B, T], padded on the left.
            ends: For each prompt the number of tokens before and after its context; None where it is unknown.

        Returns:
            New prompts of the same form, or `prompts` itself. Shortening takes time, so measure it with the prefill.

        Raises:
            InputError: For a prompt that the method does not take, such as one no longer than snapkv's window.
            UnsupportedError: For a model whose layers cannot score a prompt of this length (gemfilter).
        """
        rows = len(prompts["input_ids"])
        short = self.method.shorten(self.model, self.tokenizer, prompts, ends or [None] * rows)
        if short is not prompts:
            lengths = prompts["attention_mask"].sum(dim=1).tolist()
            self.spent = sum(self.method.choosing_flops(self.halted.shape, length) for length in lengths)
        return short

    @property
    def by_token(self) -> bool:
        """Whether a given answer must run one token at a time, as in generation."""
        return self.method.by_token

    @property
    def flops(self) -> int:
        """True FLOPs until the first new token of the latest prompts, those that chose their tokens included."""
        return self.spent + self.halted.report.flops


@contextmanager
def applying(
    model: Any,
    method: AnyMethod,
    tokenizer: Any = None,
    *,
    min_prompt_tokens: int = 0,
    question: Asked | None = None,
    timed: bool = False,
    piece_tokens: int | None = None,
    decode_graphs: bool | None = None,
    fused_kernels: bool | None = None,
) -> Iterator[Applied]:
    """Run `model` under a policy, or a method of any other stage, inside the `with` block.

    Pass prompts through `Applied.shorten` before you give them to the model.

    Args:
        model: A Hugging Face causal language model, or vision-language model, of a known family.
        method: A `Policy`, `Progressive` or `Method`; `parse_method` makes one of text.
        tokenizer: The model's tokenizer, which `bm25`, `llmlingua2` and a question as text need.
        min_prompt_tokens: No token halts in a prompt of fewer tokens; for policies only.
        question: What is asked, as in `halting`; for policies that read it. Its text needs the tokenizer.
        timed: Measure the seconds of each prefill, which waits for the device.
        piece_tokens: Number of prompt tokens that run through a layer at once, as in `halting`.
        decode_graphs: Whether generated tokens run as CUDA graphs, as in `halting`.
        fused_kernels: Whether parts of the layers run as one kernel each in a prefill, as in `halting`.

    Yields:
        The model under the method. When the block is left, the model is as before.

    Raises:
        UnsupportedError: For a model or setting that the method does not support.
        PolicyError: For an object that is not a method, or a method that does not fit the model.
        InputError: For a method that lacks a tokenizer or a package.
        ModelError: For an encoder of `llmlingua2` that cannot be loaded.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes)).eval()
        >>> with applying(model, parse_method("d3:alpha=0.9")):
        ...     answer = model.generate(torch.arange(40)[None], max_new_tokens=4, pad_token_id=0)
    """
    chosen = method_of(method)
    with chosen.attach(model, tokenizer, min_prompt_tokens=min_prompt_tokens, question=question) as halted:
        halted.timed, halted.piece_tokens = timed, check_piece_tokens(piece_tokens)
        halted.decoding.want(decode_graphs)
        halted.fused_kernels = check_switch("fused_kernels", fused_kernels)
        yield Applied(halted, model, chosen, tokenizer)


def speedup_bound(shape: ModelShape, method: AnyMethod, tokens: int) -> float:
    """Ratio of the full model's true FLOPs to the method's, until the first new token of a prompt of `tokens`."""
    return true_flops(shape, dense_loads(shape.layers, tokens), tokens) / method_of(method).flops(shape, tokens)
