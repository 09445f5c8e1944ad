"""LLMLingua-2: a small encoder predicts for each word of the prompt whether to keep it."""

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
from deltahalt.loading.hub import require_hub
from deltahalt.methods.prompt_stage import PromptMethod

CHUNK = 512  # tokens of one sequence of the encoder, with a special token at either end
BATCH = 50  # sequences that the encoder runs at once
CHUNK_ENDS = (".", "\n")  # tokens after which a chunk ends, if it has one of them


@dataclass(frozen=True, kw_only=True)
class LLMLingua2(PromptMethod):
    """Keep the words with the highest probability of "keep" by a token classifier, the mean over a word's tokens.

    Encoder, chunks, words and their probabilities are the paper's. Three choices are ours: the ratio is exact in tokens
    of the model that runs on the prompt; words are ranked over the whole context, not in each chunk; and the prompt's
    own tokens are kept, white space included. FLOPs do not include the encoder.

    Attributes:
        encoder: Token-classification model whose second label means "keep": a hub id or a local folder.

    Raises:
        PolicyError: For an option out of range.

    Source:
        LLMLingua-2 (arXiv 2403.12968).

    Example:
        >>> from deltahalt.methods.registry import format_method
        >>> method = LLMLingua2(pruning_ratio=0.5)
        >>> format_method(method)
        'llmlingua2:pruning_ratio=0.5'
        >>> method.kept(4096)
        2048
    """

    name: ClassVar[str] = "llmlingua2"
    summary: ClassVar[str] = "drops the words that a small encoder would drop"
    source: ClassVar[str] = "LLMLingua-2 (arXiv 2403.12968)"

    encoder: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        """Raises ModelError for an encoder that cannot be found, or does not have two labels."""
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        require_hub(self.encoder)
        with _as_model_error(self.encoder):
            encoder = transformers.AutoConfig.from_pretrained(self.encoder)
        _require_two_labels(encoder, self.encoder)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Raises InputError without a tokenizer, and ModelError for an encoder that cannot be loaded."""
        if tokenizer is None:
            raise InputError(f"{self.name} needs text, so a tokenizer: give a --model, or applying(..., tokenizer=...)")
        load_encoder(self.encoder, str(model.device))

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The context is decoded and tokenized again, so that the words of its text are known."""
        text = str(tokenizer.decode(ids[context], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        encoded = tokenize(tokenizer, text)
        chances = torch.zeros(len(text) + 1)  # probability of "keep" of each character
        before = 0
        for begin, end, chance in word_chances(*load_encoder(self.encoder, str(model.device)), text):
            chances[min(before, begin) : end] = chance  # with the white space before the word
            before = end
        last = torch.tensor([max(end, 1) - 1 for _, end in encoded["offset_mapping"]], dtype=torch.long)
        tokens = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return tokens.to(ids.device), chances[last].to(ids.device)  # by its last character


@lru_cache(maxsize=1)
def load_encoder(name: str, device: str) -> tuple[Any, Any]:
    """The classifier and its tokenizer, which stay in memory. Raises ModelError."""
    require_hub(name)
    with _as_model_error(name):
        classifier = transformers.AutoModelForTokenClassification.from_pretrained(name).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    _require_two_labels(classifier.config, name)
    return classifier, tokenizer


@contextmanager
def _as_model_error(name: str) -> Iterator[None]:
    """Turn the errors of transformers for an encoder that it cannot load into a ModelError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the encoder {name}: set llmlingua2:encoder= to a hub id or a local folder"
        ) from error


def _require_two_labels(config: Any, name: str) -> None:
    if config.num_labels != 2:
        raise ModelError(
            f"{name} has {config.num_labels} labels, but llmlingua2 needs two, drop and keep: set "
            "llmlingua2:encoder= to a model that has these"
        )


@torch.inference_mode()
def word_chances(classifier: Any, tokenizer: Any, text: str) -> Iterator[tuple[int, int, float]]:
    """The words of `text`: the first and last character of each (end exclusive), and its probability of "keep"."""
    encoded = tokenize(tokenizer, text)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    names = tokenizer.convert_ids_to_tokens(ids)
    words = word_starts(encoded.word_ids(), names)
    chances = list(_token_chances(classifier, tokenizer, ids, names))
    for begin, end in zip(words, [*words[1:], len(names)], strict=True):
        yield spans[begin][0], spans[end - 1][1], fmean(chances[begin:end])


def word_starts(word_ids: list[int | None], names: list[str]) -> list[int]:
    """Indices of the tokens that start a word. The tokenizer gives the words; a punctuation mark is one as well."""
    return [
        index
        for index, name in enumerate(names)
        if index == 0 or word_ids[index] != word_ids[index - 1] or name in string.punctuation
    ]


def _token_chances(classifier: Any, tokenizer: Any, ids: list[int], names: list[str]) -> Iterator[float]:
    """Probability of the label "keep" of each token, computed in chunks."""
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
    """Chunks of at most `room` tokens, as (begin, end). Each ends after its last full stop or line end, if any."""
    begin = 0
    while begin < len(names):
        end = min(begin + room, len(names))
        if end < len(names):
            stops = (at for at in range(end, begin, -1) if names[at - 1] in CHUNK_ENDS)
            end = next(stops, end)
        yield begin, end
        begin = end


def tokenize(tokenizer: Any, text: str) -> Any:
    """The tokens of a text and the characters of each. Raises UnsupportedError for a slow tokenizer."""
    if not tokenizer.is_fast:
        raise UnsupportedError(
            f"{type(tokenizer).__name__} does not report the characters of each token: use a fast tokenizer"
        )
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
