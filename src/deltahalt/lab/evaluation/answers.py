"""The full model's own answers to samples, generated for several prompts at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from deltahalt.lab.evaluation.encoding import sample_ids
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.loading.models import LoadedModel, end_tokens

AT_ONCE = 32_768  # largest number of prompt tokens in a batch, padding included


@torch.inference_mode()
def own_answers(loaded: LoadedModel, samples: Sequence[Sample], limit: int) -> list[torch.Tensor]:
    """Return the greedy answer to each sample: up to `limit` tokens [n], with the end token.

    Raises InputError for a prompt longer than the model's context.
    """
    model: Any = loaded.model
    prompts = [sample_ids(loaded, sample) for sample in samples]
    ends = end_tokens(model)
    answers: dict[int, torch.Tensor] = {}
    for batch in _batches([len(prompt) for prompt in prompts]):
        width = len(prompts[batch[-1]])
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(batch):
            ids[row, width - len(prompts[number]) :] = prompts[number]
            mask[row, width - len(prompts[number]) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        said = model.generate(
            ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, repetition_penalty=1.0, pad_token_id=0
        )[:, width:]
        for number, row in zip(batch, said, strict=True):
            length = next((at for at, token in enumerate(row.tolist(), 1) if token in ends), len(row))
            answers[number] = row[:length]
    return [answers[number] for number in range(len(prompts))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield batches of prompt numbers, prompts of similar length together: at most `AT_ONCE` tokens, or one prompt."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
