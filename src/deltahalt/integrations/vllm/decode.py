"""The attention metadata of deep layers in steps in which each request has one token.

A CUDA graph of such a step reads the same tensors at each replay. So its lengths and slots are filled in place. All
groups of deep layers hold the same tokens: they have their lengths in common, and each has its own slots.
"""

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from deltahalt.integrations.vllm.plan import Plan
from deltahalt.integrations.vllm.versions import counts_on_cpu

NO_SLOT = -1  # of vLLM: nothing is written there


class DecodeMetadata:
    """What all groups of deep layers have in common, in tensors for the largest number of requests in a step."""

    def __init__(self, requests: int, device: torch.device) -> None:
        self.lengths = torch.zeros(requests, dtype=torch.int32, device=device)

    def begin(self, common: CommonAttentionMetadata, plan: Plan | None, block_size: int) -> CommonAttentionMetadata:
        """The metadata of a step, with the blocks and slots of `common`. `slots` gives the slots of each group.

        vLLM may have padded the step with requests of length 0.

        plan: None for a step without requests, such as the one that a graph captures. Its counts stay.
        """
        count = common.num_reqs
        given = [] if plan is None else [row.dropped for row in plan.rows]
        dropped = torch.tensor(given + [0] * (count - len(given)), dtype=torch.int32)
        lengths = self.lengths[:count]
        torch.sub(common.seq_lens[:count], dropped.to(lengths.device, non_blocking=True), out=lengths)
        last, unused = (lengths - 1).clamp(min=0).long(), common.slot_mapping[:count] == NO_SLOT
        self._blocks = (last // block_size)[:, None]  # [requests, 1] index of the block of each request's last token
        self._places = (last % block_size).masked_fill(unused, NO_SLOT)  # [requests] its place in that block
        self._sizes = torch.full_like(last, block_size).masked_fill(unused, 0)  # [requests] slots of a block
        most = common.seq_lens_cpu_upper_bound[:count] - dropped
        return common.replace(
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=most,
            max_seq_len=common.max_seq_len if plan is None else int(most.max()),
            positions=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
            **counts_on_cpu(most, (most - 1).clamp(min=0)),
        )

    def slots(self, table: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The slots [requests] of the step that began, in a group whose blocks are `table` [requests, blocks].

        out: [requests or more] int64 tensor whose first elements they are.
        """
        blocks = table.gather(1, self._blocks)[:, 0]
        slots: torch.Tensor = torch.addcmul(self._places, blocks, self._sizes, out=out[: len(blocks)])
        return slots
