"""Rows of `deltahalt embed` brought down to a line a policy, and as tables."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch

from deltahalt.lab.evaluation.readout.measure import FULL
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.rows.markdown import differing, table

TOP = 10


@dataclass(frozen=True)
class EmbedSummary:
    """A policy on the texts that the full model read, too: embeddings of documents, or scores for queries.

    ending: what follows the documents; None for queries. texts: number of documents, or of queries. apart: mean cosine
    between the full model's embeddings of different documents. cosine: mean cosine to the full model's embedding of the
    same document. Both None for queries. overlap: share of the full model's `TOP` nearest that are among the policy's.
    ndcg: of the policy's ranking, as `ndcg` counts it. agreement: Kendall's tau to the full model's ranking.
    per_second: texts per second, one at a time. gain: median over texts of the full model's seconds divided by the
    policy's, in which slow drift of the machine cancels. speedup: mean ratio of true FLOPs.
    """

    model: str
    dtype: str
    policy: str
    ending: str | None
    texts: int
    tokens: int
    apart: float | None
    cosine: float | None
    overlap: float
    ndcg: float
    agreement: float
    per_second: float
    gain: float
    speedup: float


def summarize(rows: Iterable[EmbedRow]) -> list[EmbedSummary]:
    """Return a line for each model, kind of reading and policy, in the order of the rows, the full model included.

    Only texts count that the full model read, too. Of rows of the same text, the last counts.
    """
    found: dict[tuple[str, str, str | None], dict[str, dict[str, EmbedRow]]] = {}
    for row in rows:
        setting = (row.model, row.dtype, None if row.query else row.ending)
        found.setdefault(setting, {}).setdefault(row.policy, {})[row.sample] = row
    lines = []
    for (model, dtype, ending), by_policy in found.items():
        full = by_policy.get(FULL, {})
        for policy, own in by_policy.items():
            pairs = [(row, full[sample]) for sample, row in own.items() if sample in full]
            if len(pairs) > 2:
                lines.append(_summary(model, dtype, policy, ending, pairs))
    return lines


def markdown(rows: Sequence[EmbedRow]) -> str:
    """Return a Markdown table of embeddings, and one of scores for queries, as far as there are rows of them."""
    lines = summarize(rows)
    kinds = [[one for one in lines if (one.ending is None) == ranked] for ranked in (False, True)]
    return "\n\n".join(table(columns(kind)) for kind in kinds if kind)


def columns(lines: Sequence[EmbedSummary]) -> dict[str, Sequence[str]]:
    """Return the columns of a table by head. lines: all of embeddings, or all of queries."""
    ranked = lines[0].ending is None
    kept = {"rank agreement": [f"{one.agreement:.3f}" for one in lines]}
    if not ranked:
        kept = {
            "cosine": [f"{one.cosine:.4f}" for one in lines],
            f"top-{TOP} overlap": [f"{100 * one.overlap:.1f} %" for one in lines],
        }
    return {
        **differing(
            {
                "model": [one.model for one in lines],
                "dtype": [one.dtype for one in lines],
                "ending": [repr(one.ending) for one in lines],
            }
        ),
        "policy": [f"`{one.policy}`" for one in lines],
        "queries" if ranked else "documents": [f"{one.texts}" for one in lines],
        "tokens": [f"{one.tokens:,}" for one in lines],
        **kept,
        f"NDCG@{TOP}": [f"{one.ndcg:.3f}" for one in lines],
        "texts/s": [f"{one.per_second:.3g}" for one in lines],
        "measured": [f"{one.gain:.2f}x" for one in lines],
        "bound": [f"{one.speedup:.2f}x" for one in lines],
    }


def ndcg(gains: torch.Tensor, scores: torch.Tensor, top: int = TOP) -> float:
    """Return NDCG@top of a ranking by `scores` [n], where the full model's ranking by `gains` [n] is what is right.

    The full model's first gains `top` points, its second one fewer, and so on; all after the first `top` gain none.
    """
    order = gains.argsort(descending=True, stable=True)[:top]
    points = torch.zeros(len(gains))
    points[order] = torch.arange(len(order), 0, -1).float()
    discounts = 1 / torch.arange(2, len(order) + 2).float().log2()
    best, own = points[order], points[scores.argsort(descending=True, stable=True)[: len(order)]]
    return float((own * discounts).sum() / (best * discounts).sum())


def kendall(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return Kendall's tau-a of two lists of scores [n]: share of pairs in the same order minus share in the other."""
    signs = [(scores[:, None] - scores[None]).sign() for scores in (one, other)]
    pairs = len(one) * (len(one) - 1)
    return float((signs[0] * signs[1]).sum()) / pairs


def overlap(one: torch.Tensor, other: torch.Tensor, top: int = TOP) -> float:
    """Return the share of the `top` highest of scores [n] that are also among the `top` highest of the other."""
    best = [set(scores.argsort(descending=True, stable=True)[:top].tolist()) for scores in (one, other)]
    return len(best[0] & best[1]) / len(best[0])


def _summary(
    model: str, dtype: str, policy: str, ending: str | None, pairs: Sequence[tuple[EmbedRow, EmbedRow]]
) -> EmbedSummary:
    rankings = _of_queries(pairs) if ending is None else _of_neighbours(pairs)
    apart = cosine = None
    if ending is not None:
        full = torch.tensor([full.vector for _, full in pairs])
        similar = full @ full.T
        apart = float((similar.sum() - similar.trace()) / (len(full) * (len(full) - 1)))
        cosine = fmean(math.fsum(a * b for a, b in zip(own.vector, full.vector, strict=True)) for own, full in pairs)
    return EmbedSummary(
        model=model,
        dtype=dtype,
        policy=policy,
        ending=ending,
        texts=len(rankings),
        tokens=max(own.tokens for own, _ in pairs),
        apart=apart,
        cosine=cosine,
        overlap=fmean(overlap(full, own) for full, own in rankings),
        ndcg=fmean(ndcg(full, own) for full, own in rankings),
        agreement=fmean(kendall(full, own) for full, own in rankings),
        per_second=len(pairs) / math.fsum(own.seconds for own, _ in pairs),
        gain=median(full.seconds / own.seconds for own, full in pairs),
        speedup=fmean(own.speedup for own, _ in pairs),
    )


def _of_neighbours(pairs: Sequence[tuple[EmbedRow, EmbedRow]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return, for each document, its similarities [n - 1] to the others: by the full model, and by the policy."""
    vectors = [torch.tensor([row.vector for row in side]) for side in ([f for _, f in pairs], [o for o, _ in pairs])]
    full, own = (side @ side.T for side in vectors)
    others = [torch.arange(len(pairs)) != number for number in range(len(pairs))]
    return [(full[number, other], own[number, other]) for number, other in enumerate(others)]


def _of_queries(pairs: Sequence[tuple[EmbedRow, EmbedRow]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return, for each query, the scores [n] of documents: by the full model, and by the policy."""
    by_query: dict[str, list[tuple[float, float]]] = {}
    for own, full in pairs:
        by_query.setdefault(own.query, []).append((full.vector[0], own.vector[0]))
    scores = (torch.tensor(list(zip(*found, strict=True))) for found in by_query.values() if len(found) > 1)
    return [(both[0], both[1]) for both in scores]
