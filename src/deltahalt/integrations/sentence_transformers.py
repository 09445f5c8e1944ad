"""Halting inside sentence-transformers: embeddings that pool the last token, and rerankers; needs the extra `embed`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer

from deltahalt.engine.halted import Halted
from deltahalt.errors import UnsupportedError
from deltahalt.methods import applying
from deltahalt.policies.base import AnyPolicy

POOLED = "lasttoken"


@contextmanager
def halting(model: Any, policy: AnyPolicy | str, **options: Any) -> Iterator[Halted]:
    """Halt prompt tokens in every text that `model` reads inside the `with` block.

    Inside the block the tokenizer pads on the left, texts are not packed, and layers store no K/V, unless the policy
    reads K/V of halted tokens. All of this is put back at its end.

    Args:
        model: A `SentenceTransformer` whose pooling is "lasttoken", or a `CrossEncoder`, of a known decoder family.
        policy: As in `deltahalt.halting`.
        **options: As in `deltahalt.halting`: `keep`, `min_prompt_tokens`, `timed`.

    Yields:
        The `Halted` model. Its `report` describes the latest batch.

    Raises:
        UnsupportedError: For a pooling that reads other tokens than the last, since halted tokens have no final state,
            and for a model that deltahalt does not support.
        PolicyError: As `deltahalt.halting`.
        InputError: As `deltahalt.halting`.

    Source:
        Sentence-BERT (arXiv 1908.10084), in the package sentence-transformers.

    Example:
        >>> embedder = SentenceTransformer("Qwen/Qwen3-Embedding-0.6B")  # doctest: +SKIP
        >>> with halting(embedder, "auto") as halted:  # doctest: +SKIP
        ...     vectors = embedder.encode(documents)
        >>> vectors.shape  # doctest: +SKIP
        (40, 1024)
    """
    network = _network(model)
    with ExitStack() as undo:
        halted = undo.enter_context(applying.halting(network, policy, **options))
        undo.enter_context(_set(model.tokenizer, "padding_side", "left"))
        reads_halted = any(stage.halted_states is not None for stage in halted.stages)
        undo.enter_context(_set(halted.host.config, "use_cache", reads_halted))
        for part in model.children():
            if hasattr(part, "can_flatten_inputs"):  # which packs texts for FlashAttention
                undo.enter_context(_set(part, "can_flatten_inputs", False))
        yield halted


def _network(model: Any) -> Any:
    """Return the Hugging Face model inside. Raises UnsupportedError where tokens must not halt in it."""
    if isinstance(model, CrossEncoder):
        return model.model
    if not isinstance(model, SentenceTransformer):
        raise UnsupportedError(
            f"{type(model).__name__} is neither a SentenceTransformer nor a CrossEncoder: give one of them, or call "
            "deltahalt.halting with a model of transformers"
        )
    parts = list(model)
    network = getattr(parts[0], "auto_model", None) if parts else None
    pooled = _pooling(parts[1]) if len(parts) > 1 else None
    if network is None or pooled is None:
        found = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise UnsupportedError(
            f"this SentenceTransformer is made of {found}: halting needs a Transformer, then a Pooling of {POOLED!r}"
        )
    if pooled != POOLED:
        raise UnsupportedError(
            f"this SentenceTransformer pools by {pooled!r}, and halted tokens have no final state: use a model that "
            f"was trained to pool by {POOLED!r}, or run this one without halting"
        )
    return network


def _pooling(part: Any) -> str | None:
    """Return the name of a Pooling's mode, joined by + if there are several; None for another module."""
    if hasattr(part, "get_pooling_mode_str"):  # before 6
        return str(part.get_pooling_mode_str())
    mode = getattr(part, "pooling_mode", None)
    return "+".join(mode) if isinstance(mode, tuple) else mode


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
