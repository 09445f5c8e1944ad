"""The attention metadata of deep layers in steps in which each request has one token.

A CUDA graph of such a step reads the same tensors at each replay. So its lengths and slots are filled in place.
"""

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from deltahalt.integrations.vllm.plan import Plan
from deltahalt.integrations.vllm.versions import counts_on_cpu

NO_SLOT = -1  # of vLLM: nothing is written there


class DecodeMetadata:
    """Lengths and slots of deep layers, in tensors for the largest number of requests in a step."""

    def __init__(self, requests: int, device: torch.device) -> None:
        self.lengths = torch.zeros(requests, dtype=torch.int32, device=device)
        self.slots = torch.zeros(requests, dtype=torch.int64, device=device)

    def of(self, common: CommonAttentionMetadata, plan: Plan | None, block_size: int) -> CommonAttentionMetadata:
        """The metadata of a step, which vLLM may have padded with requests of length 0.

        plan: None for a step without requests, such as the one that a graph captures. Its counts stay.
        """
        count, table = common.num_reqs, common.block_table_tensor
        given = [] if plan is None else [row.dropped for row in plan.rows]
        dropped = torch.tensor(given + [0] * (count - len(given)), dtype=torch.int32)
        lengths, slots = self.lengths[:count], self.slots[:count]
        torch.sub(common.seq_lens[:count], dropped.to(lengths.device, non_blocking=True), out=lengths)
        places = (lengths - 1).clamp(min=0).long()
        blocks = table[:count].gather(1, (places // block_size)[:, None])[:, 0].long()
        unused = common.slot_mapping[:count] == NO_SLOT
        slots.copy_((blocks * block_size + places % block_size).masked_fill(unused, NO_SLOT))
        most = common.seq_lens_cpu_upper_bound[:count] - dropped
        return common.replace(
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=most,
            max_seq_len=common.max_seq_len if plan is None else int(most.max()),
            slot_mapping=slots,
            positions=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
            **counts_on_cpu(most, (most - 1).clamp(min=0)),
        )
