"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): the similarity of two texts by an encoder's token states."""

from functools import cache
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from deltahalt.errors import InputError, ModelError

BERTSCORE = "bertscore_f1"  # the metric's name in lm-eval


class BertScore:
    """A scorer with the encoder `MODEL:LAYER`: a hub id or local folder, and the layer whose states are compared.

    BERTScore and LooGLE use `roberta-large:17` for English. Scores are not rescaled to a baseline, and tokens are not
    weighted by frequency. Raises InputError for a name without a layer of the model, and ModelError for a model that
    cannot be loaded.
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
            raise InputError(
                f"the encoder {name} has no layer {self.layer}: give 0 to {self.model.config.num_hidden_layers}"
            )

    @torch.inference_mode()
    def f1(self, candidate: str, reference: str) -> float:
        """Return the F1 of matching each token with the other text's nearest by cosine; 0 if a text has no tokens."""
        said, said_words = self._encode(candidate)
        wanted, wanted_words = self._encode(reference)
        if not said_words.any() or not wanted_words.any():
            return 0.0
        cosine = said @ wanted.T
        precision = cosine.max(dim=1).values[said_words].mean()
        recall = cosine.max(dim=0).values[wanted_words].mean()
        return float(2 * precision * recall / (precision + recall))

    def _encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit states [n, D] of a text's tokens, and which of them [n] are not special tokens."""
        limit = min(self.tokenizer.model_max_length, self.limit)
        coded = self.tokenizer(
            text.strip(), truncation=True, max_length=limit, return_tensors="pt", return_special_tokens_mask=True
        ).to(self.model.device)
        words = coded.pop("special_tokens_mask")[0] == 0
        states = self.model(**coded, output_hidden_states=True).hidden_states[self.layer][0]
        return torch.nn.functional.normalize(states.float(), dim=-1), words


@cache
def load_bertscore(encoder: str) -> BertScore:
    """Return the scorer of an encoder, which all tasks share."""
    return BertScore(encoder)
