"""Tokens in the full model: how much attention updates them, and how much attention they get (Fig. 1-3)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from deltahalt.engine.observer import observing
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import SweepSettings, digest, encode
from deltahalt.lab.rows.base import Row, append_rows, rows_so_far
from deltahalt.lab.rows.markdown import table
from deltahalt.loading.models import LoadedModel, LoadedVisionModel
from deltahalt.policies.attention_scores import attention_weights
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.norms import norms

# Edges of the histogram of relative deltas: decades 10^-3 to 10^1, 40 bins each; the end bins hold what lies beyond.
DECADES, BINS_A_DECADE = (-3, 1), 40
UNATTENDED = 0.01  # share of a query's largest weight below which a token counts as not attended to
QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Observation(Row):
    """All tokens of one modality ("text" or "visual") of one prompt in the full model.

    prompt, tokens: number of tokens of the prompt, and of this modality.
    relative_delta: for each layer, the number of tokens in each bin of `delta_edges`, by ||U_t|| / ||H_t||: the norm of
        attention's output divided by that of the hidden state it is added to.
    sparsity: for each layer, the share of attention weights on these tokens that are below `UNATTENDED` times their
        query's largest weight, over all heads and all queries that can attend to the tokens.
    delta: for each token, ||U_t|| (Eq. 2), mean over the layers.
    attention: for each token, its share of all attention in the last layer, mean over the heads.
    pearson, spearman: correlation of `delta` and `attention`; None if one of them is constant.
    """

    kind: ClassVar[str] = "observe"
    signed: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman"})

    sample: str
    task: str
    model: str
    prompt: int
    modality: str
    tokens: int
    relative_delta: list[list[int]]
    sparsity: list[float]
    delta: list[float]
    attention: list[float]
    pearson: float | None
    spearman: float | None


def delta_edges() -> torch.Tensor:
    """Return the edges of the bins of relative deltas, ascending."""
    first, last = DECADES
    return torch.logspace(first, last, (last - first) * BINS_A_DECADE + 1, dtype=torch.float64)


def observe_sample(loaded: LoadedModel, sample: Sample) -> list[Observation]:
    """Observe the full model on the sample's prompt and question."""
    inputs = {"input_ids": encode(loaded, sample, SweepSettings()).prompt}
    return list(observe_prompt(loaded, inputs, sample=digest(sample), task=sample.task))


@torch.inference_mode()
def observe_prompt(
    loaded: LoadedModel | LoadedVisionModel, inputs: Mapping[str, torch.Tensor], *, sample: str, task: str
) -> Iterator[Observation]:
    """Run one prefill of the full model on the `inputs` of one prompt; yield an observation for each modality."""
    model: Any = loaded.model
    seen = _Seen()
    with observing(model, seen.look):
        model(**inputs, use_cache=False, logits_to_keep=1)
    for modality, members in seen.modalities.items():
        delta = seen.delta[members] / len(seen.layers)
        attention = seen.layers[-1].attention[members]
        yield Observation(
            sample=sample,
            task=task,
            model=loaded.name,
            prompt=len(members),
            modality=modality,
            tokens=int(members.sum()),
            relative_delta=[layer.histogram(members) for layer in seen.layers],
            sparsity=[round(layer.sparsity(members), 5) for layer in seen.layers],
            delta=_rounded(delta),
            attention=_rounded(attention),
            pearson=correlation(delta, attention),
            spearman=correlation(ranks(delta), ranks(attention)),
        )


def observe(
    loaded: LoadedModel, samples: Iterable[Sample], rows: Path, *, tick: Callable[[], None] = lambda: None
) -> Iterator[Observation]:
    """Observe the model on every sample that the JSONL file `rows` has no rows of, and append the new rows.

    tick: called after each sample. Yields all rows of this model and these samples, each before it is written.
    """
    wanted = [(digest(sample), partial(observe_sample, loaded, sample)) for sample in samples]
    return observe_missing(loaded.name, wanted, rows, tick=tick)


def observe_missing(
    model: str,
    wanted: Iterable[tuple[str, Callable[[], list[Observation]]]],
    rows: Path,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Observation]:
    """Do the same as `observe`. wanted: for each sample, its digest and a function that observes it."""
    known = [row for row in rows_so_far(rows, Observation) if row.model == model]
    for sample, look in wanted:
        found = [row for row in known if row.sample == sample]
        new = [] if found else look()
        yield from found or new
        append_rows(rows, new)
        known += new
        tick()


def columns(rows: Sequence[Observation]) -> dict[str, list[str]]:
    """Return the columns of a table by head, with a line for each row. Correlations are of delta and attention."""
    return {
        "model": [row.model for row in rows],
        "task": [row.task for row in rows],
        "modality": [row.modality for row in rows],
        "tokens": [f"{row.tokens:,}" for row in rows],
        "Pearson": ["" if row.pearson is None else f"{row.pearson:+.2f}" for row in rows],
        "Spearman": ["" if row.spearman is None else f"{row.spearman:+.2f}" for row in rows],
        "sparsity by layer": [f"{min(row.sparsity):.2f} to {max(row.sparsity):.2f}" for row in rows],
    }


def markdown(rows: Sequence[Observation]) -> str:
    """Return the rows as a Markdown table."""
    return table(columns(rows))


@dataclass
class _Layer:
    """One layer's numbers for each token, [n] each, on the CPU.

    relative: ||U_t|| / ||H_t||. attention: the token's share of all attention, mean over the heads. possible: number of
    attention weights on the token, over all heads and the queries that can attend to it. counting: number of these
    weights that are at least `UNATTENDED` times their query's largest.
    """

    relative: torch.Tensor
    attention: torch.Tensor
    possible: torch.Tensor
    counting: torch.Tensor

    @classmethod
    def of(cls, view: LayerView, delta: torch.Tensor) -> "_Layer":
        """Compute the numbers of a layer in which all prompt tokens are active. delta: ||U_t||, [n]."""
        relative = delta / norms(view.hidden_in)
        queries, keys = view.queries(len(delta)), view.keys()
        (heads, n, _), positions = queries.shape, view.positions.to(keys.device)
        received = torch.zeros(n, dtype=torch.float64, device=keys.device)
        counting = torch.zeros(n, dtype=torch.int64, device=keys.device)
        for begin in range(0, n, QUERIES_AT_ONCE):
            end = min(begin + QUERIES_AT_ONCE, n)
            readable = positions[:end]  # none of these queries attends to later tokens
            weights = attention_weights(
                queries[:, begin:end], readable[begin:], keys[:, :end], readable, view.scaling, view.window
            )
            for group in weights:
                received[:end] += group.sum(dim=(0, 1))
                counting[:end] += (group >= UNATTENDED * group.amax(dim=-1, keepdim=True)).sum(dim=(0, 1))
        possible = heads * torch.arange(n, 0, -1).clamp(max=view.window or n)
        return cls(relative.cpu(), (received / (heads * n)).float().cpu(), possible, counting.cpu())

    def sparsity(self, members: torch.Tensor) -> float:
        """Return the share of the weights on the tokens in `members` [n] bool that are below `UNATTENDED`."""
        return 1 - float(self.counting[members].sum() / self.possible[members].sum())

    def histogram(self, members: torch.Tensor) -> list[int]:
        """Return the number of tokens in `members` [n] bool with a relative delta in each bin of `delta_edges`."""
        edges = delta_edges()
        inside = self.relative[members].double().clamp(float(edges[0]), float(edges[-1]))
        counts: list[int] = torch.histogram(inside, edges).hist.long().tolist()
        return counts


@dataclass
class _Seen:
    """The layers of one prompt observed so far. delta: ||U_t|| summed over these layers, [n], on the CPU."""

    layers: list[_Layer] = field(default_factory=list)
    delta: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    modalities: dict[str, torch.Tensor] = field(default_factory=dict)

    def look(self, view: LayerView) -> None:
        """Observe one more layer."""
        delta = norms(view.update)
        self.layers.append(_Layer.of(view, delta))
        self.delta = self.delta + delta.cpu()
        self.modalities = _modalities(view)


def _modalities(view: LayerView) -> dict[str, torch.Tensor]:
    """Return a mask of the tokens, [n] bool, for each modality in the prompt."""
    visual = view.visual
    if visual is None:
        return {"text": torch.ones(len(view.positions), dtype=torch.bool)}
    both = {"text": ~visual.cpu(), "visual": visual.cpu()}
    return {modality: members for modality, members in both.items() if members.any()}


def correlation(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return Pearson's correlation of two tensors [n]; None if one of them is constant."""
    if one.min() == one.max() or other.min() == other.max():
        return None
    return round(float(torch.corrcoef(torch.stack([one, other]).double())[0, 1]), 4)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the rank of each of `values` [n], from 0; equal values share the mean of their ranks."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts + 1) / 2)[places]


def _rounded(values: torch.Tensor) -> list[float]:
    """Round to four significant digits, which keeps rows readable and small."""
    return [float(f"{value:.4g}") for value in values.tolist()]
