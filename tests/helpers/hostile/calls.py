"""Hostile calls of the Python API: a name, what is called with the tiny model, and words that its error has."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from deltahalt import (
    D3,
    Dash,
    GemFilter,
    InputError,
    KeyNorm,
    LLMLingua2,
    MaxSim,
    ModelError,
    PolicyError,
    Progressive,
    SnapKV,
    UnsupportedError,
    WindowAttention,
    applying,
    halting,
    parse_method,
    parse_policy,
)
from deltahalt.answering.ask import ask
from deltahalt.answering.documents import build_prompt, encode_turn, read_document
from deltahalt.flops import ModelShape
from deltahalt.lab.evaluation.samples import load_samples, read_samples
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow
from deltahalt.loading.models import load
from deltahalt.profile import Profile
from deltahalt.vision import ToMe, VisionZip
from deltahalt.vision.policies import parse_vision_policy
from helpers.heads import with_head

Call = Callable[[Any], Any]
BIG = 10**30


def _under(policy: Any, **options: Any) -> Call:
    """Enter `halting` with this policy."""

    def call(loaded: Any) -> None:
        with halting(loaded.model, policy, **options):
            pass

    return call


def _run(policy: Any, **inputs: Any) -> Call:
    """Prefill under a policy with these inputs beside the token ids."""

    def call(loaded: Any) -> None:
        ids = torch.arange(200)[None] % 250
        with torch.no_grad(), halting(loaded.model, policy):
            loaded.model(**{"input_ids": ids, "logits_to_keep": 1} | inputs)

    return call


def _applying(method: Any, tokenizer: Any = None) -> Call:
    def call(loaded: Any) -> None:
        with applying(loaded.model, method, tokenizer):
            pass

    return call


def _gpt2(loaded: Any) -> None:
    with halting(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)), Dash()):
        pass


def _with_head(head: str, **inputs: Any) -> Call:
    """Prefill a model with a head of `helpers.heads.AUTO`, on 120 tokens."""

    def call(loaded: Any) -> None:
        model = with_head(head)
        with torch.no_grad(), halting(model, SMALL):
            model(**{"input_ids": torch.arange(1, 121)[None]} | inputs)

    return call


def _report(loaded: Any) -> None:
    with halting(loaded.model, Dash(start=1)) as halted:
        halted.report  # noqa: B018


def _vision_report(loaded: Any) -> None:
    with halting(loaded.model, Dash(start=1)) as halted:
        halted.vision_report  # noqa: B018


SMALL = Dash(start=1, keep_first=4, keep_last=8)
CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "no policy": (_under(None), PolicyError, "policy"),
    "a list of policies": (_under([Dash()]), PolicyError, "write Progressive"),
    "a class": (_under(Dash), PolicyError, r"write Dash\(\)"),
    "a number": (_under(3), PolicyError, "of type int"),
    "a method of another stage": (_under(D3()), PolicyError, "use applying"),
    "an unknown name": (_under("nope"), PolicyError, "policy"),
    "an empty name": (_under(""), PolicyError, "policy"),
    "auto with a number that is none": (_under("auto:nan"), InputError, "auto:nan"),
    "a missing profile": (_under("no/such.json"), InputError, "json"),
    "a scope without images": (_under(Dash(scope="visual")), UnsupportedError, "scope"),
    "a start too deep": (_under(Dash(start=5)), PolicyError, "layer"),
    "a vision policy for text": (_under(SMALL, vision="visionzip"), UnsupportedError, "ViT"),
    "a negative minimum": (_under(SMALL, min_prompt_tokens=-1), InputError, "min_prompt_tokens"),
    "graphs that are text": (_under(SMALL, decode_graphs="auto"), InputError, "decode_graphs is 'auto'"),
    "graphs that are a number": (_under(SMALL, decode_graphs=1), InputError, "True, False or None"),
    "graphs on a CPU": (_under(SMALL, decode_graphs=True), UnsupportedError, "the model is on cpu"),
    "a minimum that is text": (_under(SMALL, min_prompt_tokens="many"), InputError, "min_prompt_tokens"),
    "a model that is none": (lambda _: _under(SMALL)(Loaded(nn.Linear(2, 2))), UnsupportedError, "known: gemma3_text"),
    "GPT-2": (_gpt2, UnsupportedError, "known: gemma3_text"),
    "a report before a run": (_report, InputError, "report"),
    "a report of no ViT": (_vision_report, InputError, "ViT"),
    "labels": (_run(SMALL, labels=torch.zeros(1, 200, dtype=torch.long)), UnsupportedError, "labels"),
    "all logits": (_run(SMALL, logits_to_keep=0), UnsupportedError, "logits"),
    "a label for every token": (_with_head("token"), UnsupportedError, "every token"),
    "an answer's span": (_with_head("question"), UnsupportedError, "every token"),
    "a class and a loss": (_with_head("sequence", labels=torch.tensor([1])), UnsupportedError, "labels"),
    "a text of padding": (
        _with_head("sequence", input_ids=torch.zeros(1, 120, dtype=torch.long)),
        UnsupportedError,
        "pad_token_id",
    ),
    "a class and right padding": (
        _with_head("sequence", attention_mask=(torch.arange(120) < 90).long()[None]),
        InputError,
        "pad on the left",
    ),
    "hidden states": (_run(SMALL, output_hidden_states=True), UnsupportedError, "output_hidden_states"),
    "right padding": (
        _run(SMALL, attention_mask=(torch.arange(200) < 150).long()[None]),
        InputError,
        "pad",
    ),
    "a negative start": (lambda _: Dash(start=-1), PolicyError, "start is -1"),
    "a start that is text": (lambda _: Dash(start="early"), PolicyError, "start is 'early'"),
    "a start of a boolean": (lambda _: Dash(start=True), PolicyError, "start is True"),
    "a ratio that is not a number": (lambda _: Dash(pruning_ratio=math.nan), PolicyError, "pruning_ratio is nan"),
    "a ratio above 1": (lambda _: Dash(pruning_ratio=1.1), PolicyError, "pruning_ratio is 1.1"),
    "no last token": (lambda _: Dash(keep_last=0), PolicyError, "keep_last is 0"),
    "a negative number of tokens": (lambda _: Dash(keep_first=-1), PolicyError, "keep_first is -1"),
    "a number beyond 64 bits": (lambda _: Dash(keep_first=BIG), PolicyError, "64 bits"),
    "a chunk of nothing": (lambda _: Dash(chunk=0), PolicyError, "chunk is 0"),
    "an unknown scope": (lambda _: Dash(scope="blue"), PolicyError, "all, "),
    "an even kernel": (lambda _: WindowAttention(kernel=2), PolicyError, "kernel"),
    "no window": (lambda _: MaxSim(window=0), PolicyError, "window"),
    "a power of 0": (lambda _: MaxSim(power=0), PolicyError, "power is 0"),
    "no stages": (lambda _: Progressive([]), PolicyError, "Progressive|policies"),
    "a stage that is text": (lambda _: Progressive(["dash"]), PolicyError, "Progressive|policies"),
    "a falling ratio": (
        lambda _: Progressive([KeyNorm(start=1, pruning_ratio=0.8), KeyNorm(start=3, pruning_ratio=0.5)]),
        PolicyError,
        "0.8.*0.5",
    ),
    "text with a repeated option": (lambda _: parse_policy("dash:start=1,start=2"), PolicyError, "twice"),
    "text with a word for a number": (lambda _: parse_policy("dash:start=x"), PolicyError, "start"),
    "text of a ViT's policy": (lambda _: parse_policy("tome"), PolicyError, "ViT"),
    "a typo": (lambda _: parse_method("snapvk"), PolicyError, "did you mean 'snapkv'"),
    "alpha of 0": (lambda _: D3(alpha=0), PolicyError, "alpha is 0"),
    "an even width": (lambda _: GemFilter(kernel=4), PolicyError, "kernel is 4"),
    "a whole prompt dropped": (lambda _: LLMLingua2(pruning_ratio=1), PolicyError, "pruning_ratio is 1"),
    "a window of 0": (lambda _: SnapKV(window=0), PolicyError, "window is 0"),
    "a core above the layers": (
        lambda loaded: D3(core=99).check(loaded.model.config),
        PolicyError,
        "core is 99",
    ),
    "words without a tokenizer": (_applying(LLMLingua2(encoder="/no/such")), InputError, "give a --model"),
    "an encoder that is missing": (
        lambda loaded: _applying(LLMLingua2(encoder="/no/such"), loaded.tokenizer)(loaded),
        ModelError,
        "/no/such",
    ),
    "nothing to apply": (_applying(None), PolicyError, "policy"),
    "a share of 0": (lambda _: VisionZip(retain=0), PolicyError, "retain is 0"),
    "a share that is not a number": (lambda _: ToMe(retain=math.nan), PolicyError, "retain is nan"),
    "text of a decoder's policy": (lambda _: parse_vision_policy("dash"), PolicyError, "'dash'"),
    "an empty model": (lambda _: load(""), ModelError, "folder"),
    "a model with a null byte": (lambda _: load("a\0b"), ModelError, "cannot be"),
    "a name that is too long": (lambda _: load("a" * 5000), ModelError, "File name too long"),
    "two devices": (lambda _: load("x", device="cpu", device_map="auto"), InputError, "device_map"),
    "a device that is none": (lambda _: load("x", device="banana"), InputError, "no device 'banana'"),
    "an odd dtype": (lambda _: load(".", dtype="int8"), ModelError, "config.json|int8"),
    "a shape of words": (lambda _: ModelShape.parse("a,b,c,d,e,f"), InputError, "layers,hidden"),
    "a shape of zeros": (lambda _: ModelShape.parse("0,0,0,0,0,0"), InputError, "layers,hidden"),
    "a huge shape": (lambda _: ModelShape.parse(f"{BIG},1,1,1,1,2"), InputError, "1,000"),
    "a document that is missing": (lambda _: read_document("/no/such"), InputError, "/no/such|a"),
    "a document with a null byte": (lambda _: read_document("a\0b"), InputError, "/no/such|a"),
    "half a character": (
        lambda loaded: encode_turn(loaded.tokenizer, loaded.model.config, "a\ud800"),
        InputError,
        r"\\ud800",
    ),
    "an empty question": (
        lambda loaded: build_prompt(loaded.tokenizer, loaded.model.config, "text", " "),
        InputError,
        "question",
    ),
    "a prompt of many megabytes": (
        lambda loaded: encode_turn(loaded.tokenizer, loaded.model.config, "a" * 30_000_000),
        InputError,
        "30,000,000 characters",
    ),
    "no room for an answer": (
        lambda loaded: encode_turn(loaded.tokenizer, loaded.model.config, "a" * 500, answer=50),
        InputError,
        "50",
    ),
    "no prompt": (
        lambda loaded: ask(loaded, {"input_ids": torch.zeros(1, 0, dtype=torch.long)}, SMALL),
        InputError,
        "prompt",
    ),
    "too many samples": (lambda _: load_samples("generated:99999999999"), InputError, "200,000,000"),
    "samples that are missing": (lambda _: read_samples(Path("/no/such")), InputError, "no file"),
    "a seed for a file": (lambda _: load_samples("x.jsonl", seed=3), InputError, "--seed"),
    "rows that are missing": (lambda _: read_rows(Path("/no/such"), EvalRow), InputError, "no file"),
    "a profile that is none": (lambda _: Profile.parse("[]", "mine"), InputError, "mine"),
    "a profile nested deep": (lambda _: Profile.parse("[" * 200_000, "mine"), InputError, "mine"),
}


class Loaded:
    """Something in place of a loaded model."""

    def __init__(self, model: Any) -> None:
        self.model = model
