"""BM25: the chunks of a prompt whose words match those at its two ends, found before the model runs."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from deltahalt.errors import InputError, PolicyError
from deltahalt.methods.prompt_stage import PromptMethod

CJK = "぀-ヿ㐀-䶿一-鿿가-힯"
WORD = re.compile(rf"[^\W{CJK}]+|[{CJK}]")  # scripts without blanks go character by character


@dataclass(frozen=True, kw_only=True)
class BM25(PromptMethod):
    """Keep whole chunks of tokens by the BM25 score of their words, both protected ends of the prompt being the query.

    A chunk also gets a share of the score of its better neighbour, since an answer needs what stands around it. The
    last chunk that stays is cut where the exact count falls. FLOPs leave the counting of words out.

    chunk: tokens of a chunk. neighbour: that share, in [0, 1]. k1, b: BM25's own. Raises PolicyError on settings out of
    range.
    """

    name: ClassVar[str] = "bm25"
    summary: ClassVar[str] = "keeps the chunks whose words match those at the prompt's ends"
    source: ClassVar[str] = "BM25 (Robertson et al. 1994), by bm25s (arXiv 2407.03618)"

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
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise PolicyError(f"k1 is {self.k1} and b is {self.b}; give k1 of 0 or more, and b in [0, 1]")

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Raises InputError without a tokenizer, and where bm25s is missing."""
        if tokenizer is None:
            raise InputError(f"{self.name} reads words, which random tokens do not make: give a --model")
        if find_spec("bm25s") is None:
            raise InputError(f"{self.name} needs bm25s, which the extra `bm25` brings: pip install 'deltahalt[bm25]'")

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token has its chunk's score."""
        chunks = ids[context].split(self.chunk)
        ends = " ".join(map(tokenizer.decode, (ids[: context.start], ids[context.stop :])))
        scores = torch.tensor(self.matches(words(ends), [words(tokenizer.decode(chunk)) for chunk in chunks]))
        padded = torch.nn.functional.pad(scores, (1, 1))
        scores = scores + self.neighbour * torch.maximum(padded[:-2], padded[2:])
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        return ids[context], scores.repeat_interleave(sizes).to(ids.device)

    def matches(self, query: list[str], chunks: list[list[str]]) -> list[float]:
        """The BM25 score of each chunk's words. A word that the query repeats counts once."""
        import bm25s  # noqa: PLC0415 (an extra)

        if not query or not any(chunks):
            return [0.0] * len(chunks)
        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(chunks, show_progress=False)
        return [float(score) for score in index.get_scores(list(dict.fromkeys(query)))]


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    return WORD.findall(text.casefold())
