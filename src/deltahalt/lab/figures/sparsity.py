"""Sparsity of the attention to tokens of each modality in every layer (Fig. 3)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deltahalt.lab.evaluation.observe import UNATTENDED, Observation
from deltahalt.lab.figures.house import check_plot, drawn
from deltahalt.lab.figures.observations import MODALITIES, by_modality, of_one_model


def sparsity(rows: Iterable[Observation], out: Path) -> None:
    """Draw sparsity to `out`, an .svg or a .png file: for each modality, a thin line for each prompt, and their mean.

    Sparsity is defined in `Observation`. Raises InputError as `check_plot` and `of_one_model` do.
    """
    check_plot(out)
    title, observed = of_one_model(rows)
    with drawn(out, title, (6.4, 3.8)) as figure:
        axes = figure.subplots()
        for modality, own in by_modality(observed).items():
            lines = np.array([row.sparsity for row in own])
            for line in lines:
                axes.plot(line, color=MODALITIES[modality], linewidth=0.7, alpha=0.4)
            axes.plot(
                lines.mean(axis=0),
                color=MODALITIES[modality],
                linewidth=2,
                label=f"{modality} tokens, mean of {len(own)} {'prompt' if len(own) == 1 else 'prompts'}",
            )
        axes.set_ylim(0, 1)
        axes.set_xlim(0, lines.shape[1] - 1)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"share of attention weights below {100 * UNATTENDED:g} %\nof their query's largest")
        axes.legend(frameon=False, loc="lower right")
        axes.grid()
