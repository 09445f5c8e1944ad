"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how well the words of two texts match in an encoder's eyes."""

from functools import cache
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from deltahalt.errors import InputError, ModelError

BERTSCORE = "bertscore_f1"  # what lm-eval calls the metric


class BertScore:
    """Scores texts by an encoder `MODEL:LAYER`: a hub id or local folder, and the layer whose states are compared.

    `roberta-large:17` is what BERTScore and LooGLE use for English. Not rescaled, no weights by frequency.
    Raises InputError for a name without a layer that the model has, ModelError for a model that cannot be had.
    """

    def __init__(self, encoder: str) -> None:
        name, _, layer = encoder.rpartition(":")
        if not name or not layer.isdecimal():
            raise InputError(f"the encoder is {encoder!r}: give MODEL:LAYER, such as roberta-large:17, or none")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModel.from_pretrained(name).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        except Exception as error:
            reason = str(error).split("\n", 1)[0]
            raise ModelError(
                f"the encoder {name} for BERTScore cannot be loaded: {reason}. Give a local folder (--bertscore "
                "FOLDER:LAYER), or leave BERTScore out (--bertscore none)"
            ) from error
        self.layer, self.limit = int(layer), self.model.config.max_position_embeddings
        if self.layer > self.model.config.num_hidden_layers:
            raise InputError(f"{name} has {self.model.config.num_hidden_layers} layers: there is no layer {self.layer}")

    @torch.inference_mode()
    def f1(self, candidate: str, reference: str) -> float:
        """F1 of matching each token of one text with the nearest of the other, by cosine; 0 if a text has no tokens."""
        said, said_words = self._encode(candidate)
        wanted, wanted_words = self._encode(reference)
        if not said_words.any() or not wanted_words.any():
            return 0.0
        cosine = said @ wanted.T
        precision = cosine.max(dim=1).values[said_words].mean()
        recall = cosine.max(dim=0).values[wanted_words].mean()
        return float(2 * precision * recall / (precision + recall))

    def _encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit states [n, D] of the text's tokens, and which [n] are words: marks at the ends have no weight."""
        limit = min(self.tokenizer.model_max_length, self.limit)
        coded = self.tokenizer(
            text.strip(), truncation=True, max_length=limit, return_tensors="pt", return_special_tokens_mask=True
        ).to(self.model.device)
        words = coded.pop("special_tokens_mask")[0] == 0
        states = self.model(**coded, output_hidden_states=True).hidden_states[self.layer][0]
        return torch.nn.functional.normalize(states.float(), dim=-1), words


@cache
def load_bertscore(encoder: str) -> BertScore:
    """One BertScore an encoder, however many tasks use it."""
    return BertScore(encoder)
