"""The attention metadata of deep layers in steps in which each request has one token.

A CUDA graph of such a step reads the same tensors at each replay. So its lengths and slots are filled in place. All
groups of deep layers hold the same tokens: they have their lengths in common, and each has its own slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from deltahalt.integrations.vllm.plan import Plan
from deltahalt.integrations.vllm.versions import counts_on_cpu

NO_SLOT = -1  # of vLLM: nothing is written there


@dataclass
class DecodingStep:
    """What all groups of deep layers have in common in a step in which each request has one token.

    common: the metadata of the step, with the blocks and slots of the group that came first. blocks: [requests, 1]
    index of the block of each request's last token. places: [requests] its place in that block. sizes: [requests]
    number of slots of a block; 0 for a request that is not there. built: what a backend built of it last, if anything.
    """

    common: CommonAttentionMetadata
    blocks: torch.Tensor
    places: torch.Tensor
    sizes: torch.Tensor
    built: Any = None

    def slots(self, table: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The slots [requests] of a group whose blocks are `table` [requests, blocks].

        out: [requests or more] int64 tensor whose first elements they are.
        """
        blocks = table.gather(1, self.blocks)[:, 0]
        slots: torch.Tensor = torch.addcmul(self.places, blocks, self.sizes, out=out[: len(blocks)])
        return slots


def decoding_step(
    common: CommonAttentionMetadata, plan: Plan | None, block_size: int, out: torch.Tensor
) -> DecodingStep:
    """The step of these metadata, which vLLM may have padded with requests of length 0.

    plan: None for a step without requests, such as the one that a graph captures. Its counts stay. out: [requests or
    more] int32 tensor whose first elements are the lengths of deep layers.
    """
    count = common.num_reqs
    given = [] if plan is None else [row.dropped for row in plan.rows]
    dropped = torch.tensor(given + [0] * (count - len(given)), dtype=torch.int32)
    lengths = out[:count]
    torch.sub(common.seq_lens[:count], dropped.to(lengths.device, non_blocking=True), out=lengths)
    last, unused = (lengths - 1).clamp(min=0).long(), common.slot_mapping[:count] == NO_SLOT
    most = common.seq_lens_cpu_upper_bound[:count] - dropped
    deep = common.replace(
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=most,
        max_seq_len=common.max_seq_len if plan is None else int(most.max()),
        positions=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
        **counts_on_cpu(most, (most - 1).clamp(min=0)),
    )
    return DecodingStep(
        deep,
        blocks=(last // block_size)[:, None],
        places=(last % block_size).masked_fill(unused, NO_SLOT),
        sizes=torch.full_like(last, block_size).masked_fill(unused, 0),
    )
