"""Models without a decode: classifiers that read the last token, and heads that read every token."""

from typing import Any

import pytest
import torch

from deltahalt import Dash, Dense, InputError, KeyNorm, UnsupportedError, halting
from deltahalt.host.compat import CACHE
from helpers.heads import with_head
from helpers.oracle import Oracle
from helpers.tiny import VARIANTS, attributes, prompts, tiny

TOLERANCE = 1e-5
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
LENGTHS = [(40,), (40, 29), (40, 3)]


class Reads(torch.nn.Module):
    """A model whose "logits" are the final states, for the oracle."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_decoder(self) -> Any:
        return self.model.get_decoder()

    def forward(self, **inputs: Any) -> Any:
        output = self.model.get_decoder()(**inputs)
        output.logits = output.last_hidden_state
        return output


def by_oracle(model: Any, variant: str, report: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last token's final state [B, D] by the masking oracle."""
    return Oracle(Reads(model), VARIANTS[variant].windows, report)(ids, mask)[:, -1]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_classifier_reads_the_last_token(variant: str, lengths: tuple[int, ...]) -> None:
    ids, mask = prompts(*lengths)
    model = with_head("sequence", variant)
    with torch.no_grad(), halting(model, Dash(**HALF)) as halted:
        logits = model(ids, attention_mask=mask).logits
    assert halted.report.stages
    again = with_head("sequence", variant)
    with torch.no_grad():
        assert (again.score(by_oracle(again, variant, halted.report, ids, mask)) - logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_embedding_is_the_last_tokens_final_state(variant: str, lengths: tuple[int, ...]) -> None:
    ids, mask = prompts(*lengths)
    model = tiny(variant)
    with torch.no_grad(), halting(model.model, Dash(**HALF)) as halted:
        pooled = model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
    assert (halted.report.cache_bytes, halted.report.full_cache_bytes) == (0, 0)
    again = tiny(variant)
    assert (by_oracle(again, variant, halted.report, ids, mask) - pooled).abs().max() < TOLERANCE


@pytest.mark.parametrize("policy", [Dense(), Dash(**HALF | {"pruning_ratio": 0}), Dash()], ids=["dense", "0", "short"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_classifier_that_halts_nothing_is_the_hosts(variant: str, lengths: tuple[int, ...], policy: Any) -> None:
    ids, mask = prompts(*lengths)
    with torch.no_grad():
        expected = with_head("sequence", variant)(ids, attention_mask=mask).logits
        model = with_head("sequence", variant)
        with halting(model, policy):
            assert torch.equal(model(ids, attention_mask=mask).logits, expected)


def test_a_row_of_a_batch_is_as_alone() -> None:
    ids, mask = prompts(40, 29)
    model = with_head("sequence")
    with torch.no_grad(), halting(model, KeyNorm(**HALF)):
        both = model(ids, attention_mask=mask).logits
        alone = [model(row[real.bool()][None]).logits for row, real in zip(ids, mask, strict=True)]
    assert (both - torch.cat(alone)).abs().max() < TOLERANCE


@pytest.mark.parametrize("use_cache", [True, False])
def test_without_a_cache_no_keys_are_stored(use_cache: bool) -> None:
    model = with_head("sequence")
    with torch.no_grad(), halting(model, Dash(**HALF)) as halted:
        output = model(prompts(40)[0], use_cache=use_cache)
    assert (getattr(output, CACHE) is not None, halted.report.cache_bytes > 0) == (use_cache, use_cache)


def test_embeddings_instead_of_ids_read_the_last_column() -> None:
    model = with_head("sequence")
    ids, _ = prompts(40)
    with torch.no_grad(), halting(model, Dash(**HALF)):
        expected = model(ids).logits
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)


@pytest.mark.parametrize("last", [1, 2])
def test_a_text_that_ends_in_the_padding_token_reads_the_token_before_it(last: int) -> None:
    ids, mask = prompts(40, 29)
    ids[1, -last:] = 0
    model = with_head("sequence")
    with torch.no_grad(), halting(model, Dash(**HALF)) as halted:
        logits = model(ids, attention_mask=mask).logits
    again = with_head("sequence")
    states = Oracle(Reads(again), VARIANTS["llama"].windows, halted.report)(ids, mask)
    with torch.no_grad():
        expected = again.score(states[torch.arange(2), torch.tensor([39, 39 - last])])
    assert (logits - expected).abs().max() < TOLERANCE


ENDS_IN_PADDING, MASK = prompts(40, 29)
ENDS_IN_PADDING = ENDS_IN_PADDING.clone()
ENDS_IN_PADDING[1, -3:] = 0
NOTHING_ELSE = ENDS_IN_PADDING.clone()
NOTHING_ELSE[1] = 0
RIGHT = torch.stack([MASK[0], MASK[1].flip(0)])
IDS = prompts(40, 40)[0]
BAD = {
    "a pooled token that may halt": (
        {"input_ids": ENDS_IN_PADDING, "attention_mask": MASK},
        UnsupportedError,
        r"LlamaForSequenceClassification .* pad_token_id.*last 3 tokens.*keep_last",
    ),
    "a row of padding tokens": (
        {"input_ids": NOTHING_ELSE, "attention_mask": MASK},
        InputError,
        "row 1 .* pad_token_id=0.*another token",
    ),
    "the same without a mask": ({"input_ids": NOTHING_ELSE}, UnsupportedError, "keep_last"),
    "right padding": (
        {"input_ids": IDS * RIGHT, "attention_mask": RIGHT},
        InputError,
        r"row 1 .* right.*tokenizer.padding_side = 'left'",
    ),
    "labels": ({"input_ids": IDS, "labels": torch.tensor([0, 1])}, UnsupportedError, "labels"),
    "ids of one row without a batch": ({"input_ids": IDS[0]}, InputError, r"\[batch, tokens\]"),
}


@pytest.mark.parametrize(("inputs", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_an_error_and_leaves_the_model_as_it_was(
    inputs: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = with_head("sequence")
    before = attributes(model)
    with torch.no_grad(), pytest.raises(error, match=words), halting(model, Dash(**HALF)):
        model(**inputs)
    assert attributes(model) == before
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, with_head("sequence")(IDS).logits)


@pytest.mark.parametrize("head", ["token", "question"])
def test_heads_that_read_every_token_are_refused(head: str) -> None:
    model = with_head(head)
    before = attributes(model)
    with (
        pytest.raises(UnsupportedError, match="AutoModelForSequenceClassification"),
        halting(model, Dash()),
    ):
        pass
    assert attributes(model) == before
