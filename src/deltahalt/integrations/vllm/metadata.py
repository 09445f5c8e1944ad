"""The attention backend of deep layers: vLLM's own, whose metadata count the tokens that deep layers hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata, subclass_attention_backend

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.decode import decoding_step
from deltahalt.integrations.vllm.plan import Piece, Plan
from deltahalt.integrations.vllm.shared import Halting
from deltahalt.integrations.vllm.versions import counts_on_cpu

OF_EACH_REQUEST = ("is_prefilling", "req_idx", "rswa_prefix_lens")  # further fields of the common metadata


class HaltedBuilder:
    """What is added to the metadata builder of an attention backend, for a group of deep layers.

    What vLLM derives from the common metadata, such as a kernel's schedule, follows from the changed counts. In a step
    in which tokens halt, metadata are built for one piece at a time, when deep layers come to it. In a step that only
    decodes, those of the first group serve all groups, with blocks and slots of their own, if `shares`.
    """

    halting: Halting
    lengths: torch.Tensor  # [requests] number of tokens that deep layers hold, in steps that only decode
    shares: bool  # whether the backend can exchange the blocks and slots of its metadata
    supports_update_block_table = False  # vLLM's runner would put the shallow layers' slots back

    layer_names: Sequence[str]
    kv_cache_spec: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.slots = torch.zeros_like(self.lengths, dtype=torch.int64)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, **options: Any) -> Any:
        """The metadata of a step for this group; None where each piece has its own."""
        plan, built = self.halting.plan, super().build  # type: ignore[misc]
        if common_attn_metadata.max_query_len == 1 and not (plan and plan.halts):
            return self._decoding(common_prefix_len, common_attn_metadata, **options)
        if plan is None or not plan.dropped:
            return built(common_prefix_len, common_attn_metadata, **options)
        _refuse_padding(common_attn_metadata, plan)

        def enter(piece: Piece) -> tuple[Any, torch.Tensor]:
            deep = deep_metadata(common_attn_metadata, piece, self.kv_cache_spec.block_size)
            return built(common_prefix_len, deep, **options), deep.slot_mapping

        if plan.halts:
            self.halting.entrances.append((self.layer_names, enter))
            return None
        metadata, slots = enter(plan.pieces[0])
        self._write(slots)
        return metadata

    def _decoding(self, common_prefix_len: int, common: Any, **options: Any) -> Any:
        """The metadata of a step in which each request has one token."""
        halting, table = self.halting, common.block_table_tensor
        step = halting.decoding or decoding_step(common, halting.plan, self.kv_cache_spec.block_size, self.lengths)
        halting.decoding = step
        slots = step.slots(table, self.slots)
        self._write(slots)
        if step.built is not None and self.shares:
            return super().update_block_table(step.built, table, slots)  # type: ignore[misc]
        own = step.common.replace(block_table_tensor=table, slot_mapping=slots)
        step.built = super().build(common_prefix_len, own, **options)  # type: ignore[misc]
        return step.built

    def _write(self, slots: torch.Tensor) -> None:
        """Let the layers of this group write to these slots."""
        self.halting.slots |= dict.fromkeys(self.layer_names, slots)


def halted_backend(backend: Any, halting: Halting, lengths: torch.Tensor) -> Any:
    """A subclass of an attention backend, for the layers after the one that decides.

    lengths: int32 tensor for the largest number of requests in a step, see `HaltedBuilder`.
    """
    own = backend.get_builder_cls()
    parts = {"halting": halting, "lengths": lengths, "shares": own.supports_update_block_table}
    return subclass_attention_backend("Halted", backend, type("Builder", (HaltedBuilder, own), parts))


def _refuse_padding(common: CommonAttentionMetadata, plan: Plan) -> None:
    if common.num_reqs != len(plan.rows) or common.num_actual_tokens != plan.starts[-1]:
        raise UnsupportedError(
            f"vLLM padded a step of {len(plan.rows)} requests to {common.num_reqs}: run it with --enforce-eager"
        )


def deep_metadata(common: CommonAttentionMetadata, piece: Piece, block_size: int) -> CommonAttentionMetadata:
    """The metadata of deep layers, which hold fewer tokens of each request, in the first of its blocks."""

    def sent(counts: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(counts).to(common.seq_lens.device, non_blocking=True)

    owners, places, table = sent(piece.owners), sent(piece.places), common.block_table_tensor
    slots = table[owners, places // block_size].long() * block_size + places % block_size
    lengths, requests = torch.from_numpy(piece.lengths), piece.requests.tolist()
    given = {name: getattr(common, name, None) for name in OF_EACH_REQUEST}
    return common.replace(
        num_reqs=len(requests),
        query_start_loc=sent(piece.starts),
        query_start_loc_cpu=torch.from_numpy(piece.starts),
        seq_lens=sent(piece.lengths),
        seq_lens_cpu_upper_bound=lengths,
        num_actual_tokens=int(piece.starts[-1]),
        max_query_len=int(piece.queries.max()),
        max_seq_len=int(piece.lengths.max()),
        block_table_tensor=table[requests],
        slot_mapping=slots,
        positions=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
        **{name: part[requests] for name, part in given.items() if part is not None},
        **counts_on_cpu(lengths, lengths - torch.from_numpy(piece.queries)),
    )
