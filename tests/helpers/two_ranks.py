"""Run by `torchrun` on two processes: halting under tensor parallelism, beside the same model in one process.

usage: two_ranks.py FOLDER OUT

FOLDER: a saved model. OUT: a folder; each rank writes what it found to OUT/RANK.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from deltahalt import GemFilter, UnsupportedError, applying, halting, parse_policy
from deltahalt.engine.recorded import obstacles

ENDS = "pruning_ratio=0.5,keep_first=4,keep_last=8"
POLICIES = {
    "dense": 0,
    f"both-ends:start=1,{ENDS},reach=8": 5,  # the number of tokens in a piece; 0 for the whole prompt
    f"max-sim:start=1,{ENDS},window=4,kernel=5": 0,
    f"dash:start=2,{ENDS}": 5,
    f"dash-layer:start=2,{ENDS}": 0,
    f"window-attention:start=2,{ENDS},window=8,heads=max": 0,
    f"window-attention:start=1,{ENDS},window=8,ahead=2": 0,
    f"last-token-attention:start=2,{ENDS}": 0,
    f"key-norm:start=2,{ENDS},boundary=attention": 5,
    "single-input-kv:start=2": 0,
    f"key-norm:start=1,{ENDS}+dash:start=3,{ENDS}": 0,
}


def answered(model: Any, policy: str, piece: int, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Logits of two prompts, the tokens that stayed, and eight generated tokens of each."""
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.no_grad(), halting(model, parse_policy(policy), piece_tokens=piece or None) as halted:
        logits = model(ids, attention_mask=mask, logits_to_keep=1).logits
        kept = [[rows.tolist() for rows in stage[1]] for stage in halted.report.stages]
        tokens = halted.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return {"logits": logits.flatten().tolist(), "kept": kept, "tokens": tokens.tolist()}


def shortened(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """What GemFilter leaves of a prompt."""
    ids = ids.to(model.device)
    with torch.no_grad(), applying(model, GemFilter(start=2, pruning_ratio=0.5, keep_first=4, keep_last=8)) as applied:
        short = applied.shorten({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return {"logits": [], "kept": [], "tokens": short["input_ids"].tolist()}


def refused(model: Any) -> str:
    """Why generated tokens of the model cannot be recorded as CUDA graphs."""
    obstacles.DEVICE = model.device.type
    try:
        with halting(model, "dash", decode_graphs=True):
            return ""
    except UnsupportedError as error:
        return str(error)


def main(folder: str, out: Path) -> None:
    """Write what this rank found, alone and with the other."""
    spread = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32).eval()
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(spread.device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, alone.config.vocab_size, (2, 80), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :17] = 0
    found: dict[str, Any] = {}
    for policy, piece in POLICIES.items():
        one, two = (answered(model, policy, piece, ids, mask) for model in (alone, spread))
        found[policy] = {"alone": one, "spread": two}
    found["gemfilter"] = {"alone": shortened(alone, ids[:1]), "spread": shortened(spread, ids[:1])}
    found["refused"] = refused(spread)
    half = spread.to(torch.bfloat16)
    prompts = [torch.randint(1, alone.config.vocab_size, (1, 60 + n), generator=generator) for n in range(100)]
    policy = f"window-attention:start=2,{ENDS},window=8"
    found["bfloat16"] = [answered(half, policy, 0, one, torch.ones_like(one)) for one in prompts]
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
