"""One prompt under many policies: the shallow layers run once, and each policy reruns only the deeper ones."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.cache import fork
from deltahalt.engine.call import DecoderCall, prepare
from deltahalt.engine.decoder import run_layers
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.masks import Masks
from deltahalt.engine.prefill import refuse_halted_kv, run_call
from deltahalt.engine.stream import TokenStream
from deltahalt.policies.base import Policy, Stage
from deltahalt.policies.layer_view import LayerView

Scores = dict[tuple[int, Policy], torch.Tensor]  # by layer and policy: [n]


@dataclass(frozen=True)
class Prefilled:
    """The result of a prefill: its cache, and states [1, 1 + m, D] of the prompt's last token and m trailing tokens."""

    cache: DynamicCache
    states: torch.Tensor


class PromptSweep:
    """One prompt run through the full model, which stores the tokens as they enter each layer of `firsts`.

    It also stores the scores of the whole prompt: policies that differ only in ratio or chunk share them.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, firsts: set[int]) -> None:
        self.host = HostDecoder.of(model.get_decoder())
        self.layers = list(enumerate(self.host.layers))
        self.scores: Scores = {}
        cache = DynamicCache(config=model.config)
        stream, self.call = prepare(self.host, input_ids=prompt, past_key_values=cache, use_cache=True)
        self.bounds = sorted({0, *firsts, len(self.layers)})
        self.entering, stream = self._run(stream, self.call)
        self.full = Prefilled(cache, self._last(stream))

    def _run(self, stream: TokenStream, call: DecoderCall) -> tuple[dict[int, TokenStream], TokenStream]:
        """Return the tokens as they enter each layer of `bounds`, and as they leave the last layer."""
        entering: dict[int, TokenStream] = {}
        for begin, end in pairwise(self.bounds):
            entering[begin] = stream
            stream, _ = run_layers(self.layers[begin:end], (), stream, call)
        return entering, stream

    def followed_by(self, tokens: torch.Tensor) -> "PromptSweep":
        """Return the same prompt with trailing `tokens` [1, m], which pass through every layer and never halt."""
        if tokens.shape[1] == 0:
            return self
        twin, cache = copy.copy(self), fork(self.full.cache)
        later, call = prepare(self.host, input_ids=tokens, past_key_values=cache, use_cache=True)
        entering, later = self._run(later, call)
        twin.entering = {layer: self.entering[layer].followed_by(entering[layer]) for layer in entering}
        layout = replace(self.call.layout, width=self.call.layout.width + call.layout.width)
        twin.call = replace(self.call, layout=layout)
        twin.full = Prefilled(cache, torch.cat([self.full.states, self.host.norm(later.hidden)], dim=1))
        return twin

    def finish(self, stages: tuple[Stage, ...]) -> Prefilled:
        """Return the prefill that halts at `stages`."""
        if not stages:
            return self.full
        refuse_halted_kv(self.host.shape, stages)
        first = stages[0].first
        cache = fork(self.full.cache)
        cache.layers[first:] = DynamicCache(config=self.host.config).layers[first:]
        call = replace(self.call, cache=cache, masks=Masks(self.host, self.call.layout, self.call.masks.past, cache))
        stages = tuple(remembering(stage, self.scores) for stage in stages)
        stream, _ = run_call(self.layers[first:], stages, self.entering[first], call)
        return Prefilled(cache, self._last(stream))

    def _last(self, stream: TokenStream) -> torch.Tensor:
        return self.host.norm(stream.hidden[:, -1 - stream.trailing :])


def remembering(stage: Stage, scores: Scores) -> Stage:
    """Return the stage with policies that store scores of a whole prompt in `scores`, and reuse those stored there."""
    return replace(stage, policies=tuple(_remembering(policy, scores) for policy in stage.policies))


def _remembering(policy: Policy, scores: Scores) -> Policy:
    key = policy if policy.scores_by_count else replace(policy, pruning_ratio=0, keep=0, chunk=1)
    twin = copy.copy(policy)

    def score(view: LayerView) -> torch.Tensor:
        if len(view.positions) < view.prompt:
            return policy.score(view)
        if (view.layer, key) not in scores:
            scores[view.layer, key] = policy.score(view)
        return scores[view.layer, key]

    object.__setattr__(twin, "score", score)
    return twin
