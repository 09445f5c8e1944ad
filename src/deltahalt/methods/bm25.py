"""BM25: only chunks of the prompt whose words match the query are kept, before the model runs."""

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from deltahalt.errors import InputError, PolicyError
from deltahalt.methods.prompt_stage import PromptMethod
from deltahalt.policies.options import require_at_least

CJK = "぀-ヿ㐀-䶿一-鿿가-힯"
WORD = re.compile(rf"[^\W{CJK}]+|[{CJK}]")  # in scripts without spaces, each character is a word


@dataclass(frozen=True, kw_only=True)
class BM25(PromptMethod):
    """Keep the chunks of the prompt with the highest BM25 score of their words. The query is both protected ends.

    The chunk with the lowest score that stays is cut, so that the ratio is exact. FLOPs do not include the BM25 scores.

    Attributes:
        keep_first: Number of tokens at the start of the prompt that are never dropped, 0 or more. They are part of the
            query. Where the position of the context is known, all tokens before it are used instead.
        keep_last: Number of tokens at the end of the prompt that are never dropped, 0 or more. They are part of the
            query. Where the position of the context is known, all tokens after it are used instead.
        chunk: Number of contiguous tokens that are scored together, 1 or more.
        neighbour: Share, in [0, 1], of the score of the better of its two neighbours that is added to a chunk's score,
            since an answer may need the text around a match. 0 leaves neighbours out.
        k1: BM25's parameter of term frequency, 0 or more: with a higher one, repetitions of a word count for more.
        b: BM25's parameter of length, in [0, 1]: 0 ignores the number of words in a chunk, 1 corrects
            for it in full.

    Raises:
        PolicyError: For an option out of range.

    Source:
        BM25 (Robertson et al. 1994), computed by bm25s (arXiv 2407.03618).

    Example:
        >>> from deltahalt.methods.registry import format_method
        >>> method = BM25(pruning_ratio=0.5, chunk=32)
        >>> format_method(method)
        'bm25:pruning_ratio=0.5,chunk=32'
        >>> method.kept(4096)
        2048
    """

    name: ClassVar[str] = "bm25"
    summary: ClassVar[str] = "keeps the chunks whose words match those at the two ends of the prompt"
    source: ClassVar[str] = "BM25 (Robertson et al. 1994), computed by bm25s (arXiv 2407.03618)"

    keep_first: int = 256
    keep_last: int = 128
    chunk: int = 64
    neighbour: float = 0.5
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise PolicyError(f"chunk is {self.chunk}; it must be 1 token or more")
        if not 0 <= self.neighbour <= 1:
            raise PolicyError(f"neighbour is {self.neighbour}; it must lie in [0, 1], 0 to leave neighbours out")
        require_at_least(self, 0, "k1")
        if not 0 <= self.b <= 1:
            raise PolicyError(f"b is {self.b}; it must lie in [0, 1]")

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Raises InputError without a tokenizer, and if bm25s is not installed."""
        if tokenizer is None:
            raise InputError(f"{self.name} needs text, so a tokenizer: give a --model, or applying(..., tokenizer=...)")
        if find_spec("bm25s") is None:
            raise InputError(f"{self.name} needs the package bm25s: pip install 'deltahalt[bm25]'")

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token has the score of its chunk."""
        chunks = ids[context].split(self.chunk)
        ends = " ".join(map(tokenizer.decode, (ids[: context.start], ids[context.stop :])))
        scores = torch.tensor(self.matches(words(ends), [words(tokenizer.decode(chunk)) for chunk in chunks]))
        padded = torch.nn.functional.pad(scores, (1, 1))
        scores = scores + self.neighbour * torch.maximum(padded[:-2], padded[2:])
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        return ids[context], scores.repeat_interleave(sizes).to(ids.device)

    def matches(self, query: list[str], chunks: list[list[str]]) -> list[float]:
        """The BM25 score of each chunk. A word that the query repeats counts once."""
        if not query or not any(chunks):
            return [0.0] * len(chunks)
        index = _bm25s().BM25(k1=self.k1, b=self.b)
        index.index(chunks, show_progress=False)
        return [float(score) for score in index.get_scores(list(dict.fromkeys(query)))]


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    return WORD.findall(text.casefold())


def _bm25s() -> Any:
    """The package bm25s, an extra, imported without JAX: it would start JAX, which reserves most of a GPU's memory."""
    hidden = "bm25s" not in sys.modules and "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
    try:
        return import_module("bm25s")
    finally:
        if hidden:
            del sys.modules["jax"]
