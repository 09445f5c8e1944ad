"""LLMLingua-2: a small encoder says of each word of the prompt how likely it is worth keeping."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, ClassVar

import torch
import transformers

from deltahalt.errors import InputError, ModelError, UnsupportedError
from deltahalt.methods.prompt_stage import PromptMethod

CHUNK = 512  # tokens that the encoder reads at once, with one special token at either end
BATCH = 50  # chunks
CHUNK_ENDS = (".", "\n")  # tokens that a chunk ends behind, where it has one


@dataclass(frozen=True, kw_only=True)
class LLMLingua2(PromptMethod):
    """Keep the words that a token classifier finds most likely worth keeping, by the mean over a word's tokens.

    encoder: a token-classification model whose second label means "keep", by hub id or local folder.

    The paper's: encoder, chunks, words and their probabilities. Ours: the share counts the tokens of the model that
    will read the prompt, exactly; words are ranked over the whole context, not chunk by chunk; and what is kept is the
    prompt's own tokens, white space included. FLOPs leave the encoder out.
    """

    name: ClassVar[str] = "llmlingua2"
    summary: ClassVar[str] = "drops the words that a small encoder would drop"
    source: ClassVar[str] = "LLMLingua-2 (arXiv 2403.12968)"

    encoder: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        """Raises ModelError for an encoder that cannot be found, or has other labels."""
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        with _as_model_error(self.encoder):
            encoder = transformers.AutoConfig.from_pretrained(self.encoder)
        _require_two_labels(encoder, self.encoder)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Raises InputError without a tokenizer, and ModelError for an encoder that cannot be loaded."""
        if tokenizer is None:
            raise InputError(f"{self.name} reads words, which random tokens do not make: give a --model")
        load_encoder(self.encoder, str(model.device))

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The context is read as text: its tokens are those that the tokenizer makes of it."""
        text = str(tokenizer.decode(ids[context], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        encoded = tokenize(tokenizer, text)
        chances = torch.zeros(len(text) + 1)  # by character
        before = 0
        for begin, end, chance in word_chances(*load_encoder(self.encoder, str(model.device)), text):
            chances[min(before, begin) : end] = chance  # white space belongs to the word after it
            before = end
        last = torch.tensor([max(end, 1) - 1 for _, end in encoded["offset_mapping"]], dtype=torch.long)
        tokens = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return tokens.to(ids.device), chances[last].to(ids.device)  # a token is judged by its last character


@lru_cache(maxsize=1)
def load_encoder(name: str, device: str) -> tuple[Any, Any]:
    """The classifier and its tokenizer, kept in memory. Raises ModelError."""
    with _as_model_error(name):
        classifier = transformers.AutoModelForTokenClassification.from_pretrained(name).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    _require_two_labels(classifier.config, name)
    return classifier, tokenizer


@contextmanager
def _as_model_error(name: str) -> Iterator[None]:
    """Turn what transformers raises for an encoder that it cannot load into a ModelError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the encoder {name}: give llmlingua2:encoder= a hub id or local folder"
        ) from error


def _require_two_labels(config: Any, name: str) -> None:
    if config.num_labels != 2:
        raise ModelError(f"{name} has {config.num_labels} labels: LLMLingua-2 needs two, drop and keep")


@torch.inference_mode()
def word_chances(classifier: Any, tokenizer: Any, text: str) -> Iterator[tuple[int, int, float]]:
    """The words of `text`: where each begins and ends in it, and how likely it is worth keeping, in [0, 1]."""
    encoded = tokenize(tokenizer, text)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    names = tokenizer.convert_ids_to_tokens(ids)
    words = word_starts(encoded.word_ids(), names)
    chances = list(_token_chances(classifier, tokenizer, ids, names))
    for begin, end in zip(words, [*words[1:], len(names)], strict=True):
        yield spans[begin][0], spans[end - 1][1], fmean(chances[begin:end])


def word_starts(word_ids: list[int | None], names: list[str]) -> list[int]:
    """The tokens that a word begins with: by the tokenizer's own account, or a punctuation mark."""
    return [
        index
        for index, name in enumerate(names)
        if index == 0 or word_ids[index] != word_ids[index - 1] or name in string.punctuation
    ]


def _token_chances(classifier: Any, tokenizer: Any, ids: list[int], names: list[str]) -> Iterator[float]:
    """Probability of the label "keep" for each token, chunk by chunk."""
    room = min(CHUNK, tokenizer.model_max_length, classifier.config.max_position_embeddings) - 2
    chunks = [ids[begin:end] for begin, end in cuts(names, room)]
    for first in range(0, len(chunks), BATCH):
        batch = chunks[first : first + BATCH]
        inputs = tokenizer.pad(
            {"input_ids": [[tokenizer.cls_token_id, *chunk, tokenizer.sep_token_id] for chunk in batch]},
            padding_side="right",
            return_tensors="pt",
        )
        keep = classifier(**inputs.to(classifier.device)).logits.float().softmax(dim=-1)[..., 1]  # [chunks, room + 2]
        for row, chunk in zip(keep.tolist(), batch, strict=True):
            yield from row[1 : len(chunk) + 1]


def cuts(names: list[str], room: int) -> Iterator[tuple[int, int]]:
    """Cuts of the tokens into runs of at most `room`, each ending behind the last full stop in it, if it has one."""
    begin = 0
    while begin < len(names):
        end = min(begin + room, len(names))
        if end < len(names):
            stops = (at for at in range(end, begin, -1) if names[at - 1] in CHUNK_ENDS)
            end = next(stops, end)
        yield begin, end
        begin = end


def tokenize(tokenizer: Any, text: str) -> Any:
    """The text's tokens and the characters that each covers. Raises UnsupportedError for a slow tokenizer."""
    if not tokenizer.is_fast:
        raise UnsupportedError("this tokenizer does not tell where its tokens lie in the text: use a fast one")
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
