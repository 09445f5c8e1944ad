"""What policies declare of their scores is true: what they read, and what a score depends on."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

from deltahalt import Dash, MaxSim, WindowAttention
from deltahalt.kinds import IMAGE
from deltahalt.policies import POLICIES
from deltahalt.policies.base import READABLE, Policy
from deltahalt.policies.layer_view import LayerView
from helpers.views import layer_view

PROMPT = 40


def small(policy: Policy) -> Policy:
    """The policy with protected ends and a window that fit into a short prompt."""
    options: dict[str, Any] = {"window": 4} if hasattr(policy, "window") else {}
    return replace(policy, **options | ({"keep_first": 2, "keep_last": 8} if policy.keep_first else {}))


OPTIONS = [
    small(policy)
    for policy in (
        *(single for policy in POLICIES.values() for single in policy().stages[:1]),
        Dash(relative=True),
        WindowAttention(similar=0.5),
        MaxSim(boundary="attention"),
    )
]


@dataclass(frozen=True)
class Watched(LayerView):
    """A view that notes which of its fields are read."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in READABLE and value is not None:
            object.__getattribute__(self, "__dict__").setdefault("read", set()).add(name)
        return value


def shown(policy: Policy) -> LayerView:
    kinds = torch.zeros(PROMPT, dtype=torch.long)
    kinds[5:30] = IMAGE
    view = layer_view(PROMPT)
    visual = {"kinds": kinds, "embeddings": view.hidden_in} if policy.scope != "all" else {}
    return replace(view, hidden_out=None if policy.boundary == "attention" else view.hidden_out, **visual)


@pytest.mark.parametrize("policy", OPTIONS, ids=lambda policy: f"{policy.name}-{policy.boundary}")
def test_a_policy_reads_what_it_declares_and_nothing_else(policy: Policy) -> None:
    view = shown(policy)
    watched = Watched(**{name: object.__getattribute__(view, name) for name in view.__dataclass_fields__})
    policy.score(watched)
    assert object.__getattribute__(watched, "__dict__").get("read", set()) <= policy.reads


def piece(view: LayerView, part: slice) -> LayerView:
    whole = view.keys()
    return replace(
        view,
        positions=view.positions[part],
        hidden_in=view.hidden_in[part],
        update=view.update[part],
        hidden_out=None if view.hidden_out is None else view.hidden_out[part],
        keys=partial(whole.__getitem__, (slice(None), part)),
    )


@pytest.mark.parametrize("policy", [one for one in OPTIONS if one.pointwise], ids=lambda policy: policy.name)
def test_a_pointwise_policy_scores_pieces_as_it_scores_the_whole(policy: Policy) -> None:
    view = layer_view(PROMPT)
    parts = [policy.score(piece(view, slice(begin, begin + 7))) for begin in range(0, PROMPT, 7)]
    assert torch.equal(torch.cat(parts), policy.score(view))


@pytest.mark.parametrize("policy", OPTIONS, ids=lambda policy: f"{policy.name}-{policy.boundary}")
def test_scores_depend_on_the_count_only_where_that_is_declared(policy: Policy) -> None:
    few, many = (replace(policy, pruning_ratio=ratio).score(shown(policy)) for ratio in (0.9, 0.2))
    assert torch.equal(few, many) != policy.scores_by_count


@pytest.mark.parametrize(
    "policy", [one for one in OPTIONS if one.scope == "all"], ids=lambda policy: f"{policy.name}-{policy.boundary}"
)
def test_a_policy_never_waits_for_the_values_of_a_whole_prompt_of_text(policy: Policy) -> None:
    """Tensors on the meta device have no values: to read one is an error, as it is a wait on a GPU."""
    view = shown(policy)
    fields = {name: getattr(view, name) for name in view.__dataclass_fields__}
    blank = {name: value.to("meta") for name, value in fields.items() if isinstance(value, torch.Tensor)}
    keys, queries = view.keys().to("meta"), view.queries(PROMPT).to("meta")
    view = replace(view, **blank, keys=lambda: keys, queries=lambda last: queries[:, -last:])
    scores = policy.score(view)
    assert scores.shape == (PROMPT,)
    assert policy.choose(scores, view).shape == (policy.kept(PROMPT),)
