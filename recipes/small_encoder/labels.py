"""Texts, and which of their words a language model finds worth keeping: those that it did not see coming.

A word's surprisal is Selective Context's signal (arXiv 2310.06201). LLMLingua-2 (arXiv 2403.12968) learns something
else: which words GPT-4 kept when it was asked to shorten a text.
"""

import ast
import random
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from deltahalt.errors import InputError
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.llmlingua2 import tokenize, word_starts

PASSAGE = re.compile(r"\S.{1,2000}(?!\S)", re.DOTALL)  # whole words, about as many as an encoder reads at once
HELD_OUT = 0.1


def python_texts() -> list[str]:
    """What there is to read in every Python installation: its help topics, and the docstrings of each module."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in sorted(library.rglob("*.py")) if not {"site-packages", "test"} & {*path.parts}]
    return [*(topics[name] for name in sorted(topics)), *map(_docstrings, modules)]


def _docstrings(module: Path) -> str:
    try:
        nodes = ast.walk(ast.parse(module.read_bytes()))
    except (SyntaxError, ValueError):  # some are wrong on purpose
        return ""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, documented))))


def split(texts: Sequence[str], passages: int, seed: int) -> tuple[list[str], list[str]]:
    """`passages` in all, at most: those to train on, and a tenth that is held out, of texts of their own.

    Raises InputError for fewer than two texts or passages.
    """
    if min(len(texts), passages) < 2:
        raise InputError("some passages are held out, of a text of their own: give two texts and passages, or more")
    draw = random.Random(seed)
    mixed = draw.sample(texts, len(texts))
    first = max(1, round(HELD_OUT * len(texts)))
    count = max(1, round(HELD_OUT * passages))
    return _passages(mixed[first:], passages - count, draw), _passages(mixed[:first], count, draw)


def _passages(texts: Sequence[str], count: int, draw: random.Random) -> list[str]:
    passages = [passage for text in texts for passage in PASSAGE.findall(text)]
    return draw.sample(passages, min(count, len(passages)))


def word_ends(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Where each of the encoder's words ends: in its tokens, and in the text."""
    encoded = tokenize(tokenizer, text)
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    ends = [*word_starts(encoded.word_ids(), names)[1:], len(names)]
    return ends, [encoded["offset_mapping"][end - 1][1] for end in ends]


@torch.inference_mode()
def surprisals(teacher: LoadedModel, text: str, ends: Sequence[int]) -> np.ndarray:
    """The surprisal of each word in nats, [words]: the sum over its tokens. ends: where each word ends in the text.

    A token that belongs to two words counts for each by its characters. White space belongs to the word behind it.
    """
    encoded = tokenize(teacher.tokenizer, text)
    # A text begins where another has ended.
    ids = torch.tensor([[teacher.tokenizer.eos_token_id, *encoded["input_ids"]]], device=teacher.model.device)
    chances = teacher.model(ids).logits[0, :-1].float().log_softmax(dim=-1)  # [tokens, vocabulary]
    nats = -chances.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
    token_ends = [0, *(end for _, end in encoded["offset_mapping"])]
    before = np.interp([0, *ends], token_ends, [0, *nats.cumsum(dtype=np.float64)])
    return np.diff(before)


def kept(nats: np.ndarray, share: float) -> np.ndarray:
    """Which words [words] bool are the `share` of highest surprisal."""
    return nats >= np.quantile(nats, 1 - share)
