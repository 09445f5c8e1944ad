"""GemFilter: shallow layers of the model choose the tokens of a new, shorter prompt."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from deltahalt.engine.call import prepare
from deltahalt.engine.decoder import run_layers
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.errors import PolicyError, UnsupportedError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.host.ranks import of_all_ranks
from deltahalt.methods.prompt_stage import PromptMethod
from deltahalt.policies.options import require_odd


@dataclass(frozen=True, kw_only=True)
class GemFilter(PromptMethod):
    """Keep the tokens whose keys at a shallow layer have the largest inner product with the last token's queries.

    The products are summed over heads, without softmax, and averaged over `kernel` neighbours. The layers before the
    filter layer run on the whole prompt; then the full model runs on the kept tokens as a prompt of their own. The
    paper's settings, for models of 32 layers, are start=13 or 19, count=1024, kernel=5, keep_first=0 and keep_last=1.
    Two choices are ours: the last token always stays, and `pruning_ratio` is used instead of a count.

    Attributes:
        start: Filter layer r: an index, from 0 (int), or a fraction of the layers (float).
        kernel: Width of the moving mean over products, in tokens; odd. 1 leaves them as they are.
        count: Number of eligible tokens that stay, in place of pruning_ratio. 0 uses pruning_ratio.

    Raises:
        PolicyError: For an option out of range.

    Source:
        GemFilter (arXiv 2409.17422).

    Example:
        >>> from deltahalt.methods.registry import format_method
        >>> method = GemFilter(start=13, pruning_ratio=0.5)
        >>> format_method(method)
        'gemfilter:start=13,pruning_ratio=0.5'
        >>> method.kept(4096)
        2048
    """

    name: ClassVar[str] = "gemfilter"
    summary: ClassVar[str] = "keeps the tokens whose shallow keys match the last token's queries, and runs on them"
    source: ClassVar[str] = "GemFilter (arXiv 2409.17422)"

    start: float | int = 0.4
    kernel: int = 5
    count: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start < (math.inf if isinstance(self.start, int) else 1):
            raise PolicyError(f"start is {self.start!r}; give a layer index >= 0 or a fraction of the layers in [0, 1)")
        require_odd(self, "kernel")
        if self.count < 0:
            raise PolicyError(f"count is {self.count}; it must be 0 or more, 0 to use pruning_ratio")
        if self.keep_last < 1:
            raise PolicyError("keep_last is 0; the last token yields the logits, so keep at least 1")

    def layer(self, layers: int) -> int:
        """The filter layer in a model of `layers` layers. Raises PolicyError for one that it does not have."""
        layer = self.start if isinstance(self.start, int) else math.floor(self.start * layers)
        if layer >= layers:
            raise PolicyError(
                f"{self.name} starts at layer {layer}, but the model has layers 0 to {layers - 1}: set start to one of "
                "these"
            )
        return layer

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        super().check(config, min_prompt_tokens=min_prompt_tokens)
        self.layer(config.get_text_config().num_hidden_layers)

    def kept(self, eligible: int) -> int:
        return min(self.count, eligible) if self.count else super().kept(eligible)

    def score(self, model: Any, tokenizer: Any, ids: torch.Tensor, context: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises UnsupportedError if the filter layer does not see the whole prompt, or its weights are offloaded."""
        host = HostDecoder.of(model.get_decoder())
        family, layers = host.family, list(enumerate(host.layers))
        index = self.layer(len(layers))
        window = host.windows[index]
        if window is not None and len(ids) > window:
            raise UnsupportedError(
                f"layer {index} attends over the last {window} tokens only, so it cannot score a prompt of {len(ids)}: "
                "choose a start layer with full attention"
            )
        layer = layers[index][1]
        if family.offloaded(layer):
            raise UnsupportedError(
                f"layer {index} is offloaded, so it cannot score a prompt: keep it on a device, or choose another start"
            )
        stream, call = prepare(host, input_ids=ids[None], use_cache=False)
        stream, _ = run_layers(layers[:index], (), stream, call)
        cos, sin = stream.rotary[family.rotary_kind(host.config, index)]
        hidden = stream.hidden.to(family.device(layer))
        queries = family.queries(layer, hidden[:, -1:], (cos[:, -1:], sin[:, -1:]))[0]
        queries = of_all_ranks(queries, layer, host.shape.heads)[:, 0]  # [heads, d]
        keys = of_all_ranks(family.keys(layer, hidden, (cos, sin))[0], layer, host.shape.kv_heads)  # [kv_heads, n, d]
        # Queries of heads that share a key are summed before the product.
        summed = queries.float().view(len(keys), -1, queries.shape[-1]).sum(dim=1)  # [kv_heads, d]
        products = torch.einsum("hd,hnd->n", summed, keys.float())
        pooled = F.avg_pool1d(products[None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        return ids[context], pooled[context].to(ids.device)

    def choosing_flops(self, shape: ModelShape, tokens: int) -> int:
        return true_flops(shape, dense_loads(self.layer(shape.layers), tokens), tokens)
