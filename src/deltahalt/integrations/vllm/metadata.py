"""The attention backend of deep layers: vLLM's own, whose metadata count the tokens that deep layers hold."""

from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata, subclass_attention_backend

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.decode import DecodeMetadata
from deltahalt.integrations.vllm.plan import Plan
from deltahalt.integrations.vllm.shared import Halting
from deltahalt.integrations.vllm.versions import counts_on_cpu


def halted_backend(backend: Any, halting: Halting) -> Any:
    """A subclass of an attention backend, for the layers after the one that decides.

    What vLLM derives from the common metadata, such as a kernel's schedule, follows from the changed counts.
    """

    own: Any = backend.get_builder_cls()

    class Builder(own):
        supports_update_block_table = False  # it would put the shallow layers' slots back

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.decode = DecodeMetadata(self.vllm_config.scheduler_config.max_num_seqs, self.device)

        def build(self, common_prefix_len: int, common_attn_metadata: Any, **options: Any) -> Any:
            plan, size = halting.plan, self.kv_cache_spec.block_size
            if common_attn_metadata.max_query_len == 1:
                common_attn_metadata = self.decode.of(common_attn_metadata, plan, size)
                halting.slots = common_attn_metadata.slot_mapping
            elif plan is not None and plan.dropped.any():
                common_attn_metadata = deep_metadata(common_attn_metadata, plan, size)
                halting.slots = common_attn_metadata.slot_mapping
            return super().build(common_prefix_len, common_attn_metadata, **options)

    return subclass_attention_backend("Halted", backend, Builder)


def deep_metadata(common: CommonAttentionMetadata, plan: Plan, block_size: int) -> CommonAttentionMetadata:
    """The metadata of deep layers, which hold fewer tokens of each request, in the first of its blocks."""
    if common.num_reqs != len(plan.rows) or common.num_actual_tokens != plan.starts[-1]:
        raise UnsupportedError(
            f"vLLM padded a step of {len(plan.rows)} requests to {common.num_reqs}: run it with --enforce-eager"
        )

    def sent(counts: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(counts).to(common.seq_lens.device, non_blocking=True)

    owners, places, table = sent(plan.owners), sent(plan.places), common.block_table_tensor
    slots = table[owners, places // block_size].long() * block_size + places % block_size
    lengths = torch.from_numpy(plan.lengths)
    return common.replace(
        query_start_loc=sent(plan.deep_starts),
        query_start_loc_cpu=torch.from_numpy(plan.deep_starts),
        seq_lens=common.seq_lens - sent(plan.dropped),
        seq_lens_cpu_upper_bound=lengths,
        num_actual_tokens=int(plan.deep_starts[-1]),
        max_query_len=int(plan.queries.max()),
        max_seq_len=int(plan.lengths.max()),
        slot_mapping=slots,
        positions=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
        **counts_on_cpu(lengths, lengths - torch.from_numpy(plan.queries)),
    )
