"""Observed rows prepared for figures 1 to 3: of one model, by modality, with summed histograms."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.observe import Observation, delta_edges

Array = npt.NDArray[np.float64]
MODALITIES = {"text": "#3f90da", "visual": "#e76300"}  # colours that differ for any colour vision


def of_one_model(rows: Iterable[Observation]) -> tuple[str, list[Observation]]:
    """Return a title, and the last row of each sample and modality.

    Raises InputError if there are no rows, or rows of several models.
    """
    latest = {(row.model, row.sample, row.modality): row for row in rows}
    models = sorted({row.model for row in latest.values()})
    if not models:
        raise InputError("there are no rows: run `deltahalt observe` first")
    if len(models) > 1:
        raise InputError(f"these are rows of several models ({', '.join(models)}): give rows of only one")
    prompts = len({row.sample for row in latest.values()})
    return f"{models[0]}, {prompts} {'prompt' if prompts == 1 else 'prompts'}", list(latest.values())


def by_modality(rows: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Return the rows of each modality that has any."""
    own = {modality: [row for row in rows if row.modality == modality] for modality in MODALITIES}
    return {modality: found for modality, found in own.items() if found}


def relative_deltas(rows: Sequence[Observation]) -> Array:
    """Return the number of tokens in each bin of `delta_edges`, over all rows: [layers, bins]."""
    return np.array([row.relative_delta for row in rows], dtype=np.float64).sum(axis=0)


def quantile(counts: Array, share: float) -> float:
    """Return the relative delta below which `share` of the tokens are, interpolated within its bin. counts: [bins]."""
    edges, below = delta_edges().numpy(), np.concatenate([[0.0], counts.cumsum()])
    place = np.interp(share * below[-1], below, np.arange(len(below)))
    return float(np.exp(np.interp(place, np.arange(len(edges)), np.log(edges))))
