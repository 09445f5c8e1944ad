"""What ViT-stage methods leave, written naively from their papers: references to compare with."""

import math

import torch

from deltahalt.vision.policy import GroupView
from helpers.group_views import UNIT


def norm(row: list[float]) -> float:
    return math.sqrt(sum(value * value for value in row))


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (norm(one) * norm(other))


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def mean_keys(view: GroupView) -> list[list[float]]:
    """Raw keys averaged over heads and over the patches of a group, [n][d]."""
    heads = view.raw_keys().tolist()
    patches = [mean([head[patch] for head in heads]) for patch in range(len(heads[0]))]
    return [mean(patches[first : first + UNIT]) for first in range(0, len(patches), UNIT)]


def dart_naively(view: GroupView, states: torch.Tensor, pivots: int, count: int) -> list[int]:
    keys = view.keys().tolist()
    norms = [sum(abs(value) for head in keys for value in head[patch]) for patch in range(len(keys[0]))]
    groups = [sum(norms[first : first + UNIT]) for first in range(0, len(norms), UNIT)]
    features = [mean(group) for group in states.tolist()]
    chosen = sorted(range(len(groups)), key=lambda group: -groups[group])[:pivots]
    shares = [(count - pivots) // pivots + (turn < (count - pivots) % pivots) for turn in range(pivots)]
    for pivot, share in zip(list(chosen), shares, strict=True):
        pool = [group for group in range(len(groups)) if group not in chosen]
        chosen += sorted(pool, key=lambda group: cosine(features[group], features[pivot]))[:share]
    return sorted(chosen)


def received_naively(view: GroupView) -> list[float]:
    """The whole matrix of each head and segment, summed over queries and over a group's patches."""
    received, first = [], 0
    for groups in view.segments:
        own = slice(first, first := first + groups * UNIT)
        logits = view.queries()[:, own] @ view.keys()[:, own].transpose(1, 2) * view.scaling
        received += logits.softmax(dim=-1).sum(dim=1).mean(dim=0).view(groups, UNIT).sum(dim=1).tolist()
    return received


def visionzip_naively(
    attention: list[float], keys: list[list[float]], states: torch.Tensor, count: int, targets: int
) -> dict[int, torch.Tensor]:
    """States of the groups that stay: the most attended, and every so-many-th other plus the mean of those like it."""
    order = sorted(range(len(attention)), key=lambda group: -attention[group])
    rest = sorted(order[count - targets :])
    standing = [rest[place * (len(rest) // targets)] for place in range(targets)]
    taken: dict[int, list[int]] = {group: [] for group in standing}
    for group in rest:
        if group not in taken:
            taken[max(standing, key=lambda target: cosine(keys[group], keys[target]))].append(group)
    kept = {group: states[group] for group in order[: count - targets]}
    for group, others in taken.items():
        kept[group] = states[group] + (torch.stack([states[other] for other in others]).mean(dim=0) if others else 0)
    return dict(sorted(kept.items()))


def choose_naively(attention: list[float], count: int) -> list[int]:
    """Groups in raster order: outliers, most attended first, then the middles of equal spans of the others."""
    sorted_attention = sorted(attention)

    def quantile(share: float) -> float:
        place = share * (len(attention) - 1)
        below = math.floor(place)
        above = min(below + 1, len(attention) - 1)
        return sorted_attention[below] + (place - below) * (sorted_attention[above] - sorted_attention[below])

    bar = quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))
    order = sorted(range(len(attention)), key=lambda group: -attention[group])
    outliers = [group for group in order if attention[group] > bar][:count]
    others = [group for group in range(len(attention)) if group not in outliers]
    need = count - len(outliers)
    return sorted(outliers + [others[(2 * step + 1) * len(others) // (2 * need)] for step in range(need)])


def prumerge_naively(
    attention: list[float], keys: list[list[float]], states: torch.Tensor, count: int, neighbours: int
) -> dict[int, torch.Tensor]:
    """States of the groups that stay, each plus its nearest others by their share of attention."""
    shares, kept = [value / sum(attention) for value in attention], {}
    for group in choose_naively(shares, count):
        others = [other for other in range(len(shares)) if other != group]
        nearest = sorted(others, key=lambda other: -cosine(keys[other], keys[group]))[:neighbours]
        kept[group] = states[group] + sum(shares[other] * states[other] for other in nearest)
    return kept


def match_naively(metric: list[list[float]], merges: int) -> dict[int, int]:
    """Which group merges into which."""
    even, odd = range(0, len(metric), 2), range(1, len(metric), 2)
    best = {group: max(odd, key=lambda other: cosine(metric[group], metric[other])) for group in even}
    closest = sorted(even, key=lambda group: -cosine(metric[group], metric[best[group]]))
    return {group: best[group] for group in closest[:merges]}


def tome_naively(
    members: list[torch.Tensor], sizes: list[float], merged: dict[int, int]
) -> tuple[list[torch.Tensor], list[float]]:
    """Means weighted by size, and the sizes that come of them."""
    states, counts = [], []
    for group in range(len(members)):
        if group not in merged:
            meeting = [group, *(source for source, target in merged.items() if target == group)]
            counts.append(sum(sizes[one] for one in meeting))
            states.append(sum(members[one] * sizes[one] for one in meeting) / counts[-1])
    return states, counts


def tofu_naively(
    members: list[torch.Tensor], sizes: list[float], merged: dict[int, int]
) -> tuple[list[torch.Tensor], list[float]]:
    """Means as long as the longest that meets in them, patch by patch."""
    states = []
    for group in range(len(members)):
        if group not in merged:
            meeting = torch.stack([members[one] for one in (group, *(s for s, t in merged.items() if t == group))])
            average = meeting.mean(dim=0)
            longest = meeting.norm(dim=-1).max(dim=0).values
            states.append(average / average.norm(dim=-1, keepdim=True) * longest[:, None])
    return states, [1.0] * len(states)
