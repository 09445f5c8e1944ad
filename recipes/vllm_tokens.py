"""Compare the tokens that prompts get in vLLM with those of the core engine, in float32.

usage: vllm_tokens.py MODEL OUT.jsonl [MODE [POLICY]]

MODEL: a folder with a model and its tokenizer. MODE: `default`, `graphs` or `eager`, as in time_vllm.py. POLICY: `auto`
if it is left out. Prompts are parts of this project's pages and code of mixed lengths, each with a question, in the
model's chat format. A row is added to OUT.jsonl. It needs vLLM.
"""

import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import vllm
from transformers import AutoModelForCausalLM, AutoTokenizer

import deltahalt
from deltahalt.lab.bench.agreement import AgreementRow
from deltahalt.lab.bench.machine import machine_name
from deltahalt.lab.rows.base import append_rows
from deltahalt.policies.text import format_policy

PROJECT = Path(__file__).parents[1]
PROMPTS, NEW_TOKENS, IN_FLIGHT, CHUNK = 100, 24, 16, 2_048
CHARACTERS = 900, 18_000  # of a part
ROOM = 8_192  # tokens
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "graphs": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    "eager": {"enforce_eager": True},
}


def questions() -> list[str]:
    """Parts of this project's files, whose lengths are drawn evenly on a logarithmic scale, each with a question."""
    files = sorted([*PROJECT.glob("docs/**/*.md"), *PROJECT.glob("src/**/*.py")])
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    draw, least, most = random.Random(0), *CHARACTERS
    asked = []
    for _ in range(PROMPTS):
        length = int(least * (most / least) ** draw.random())
        begin = draw.randrange(len(text) - length)
        part = text[begin : begin + length]
        word = draw.choice(re.findall(r"[A-Za-z]{4,}", part))
        asked.append(f"{part}\n\nWhat is said about {word} in the text above?")
    return asked


def expected(folder: Path, ids: list[list[int]], policy: str) -> tuple[str, list[bool], list[list[int]]]:
    """The policy's text, and for each prompt whether tokens halt in it, and the core engine's new tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    halts, answers = [], []
    with torch.no_grad(), deltahalt.halting(model, policy) as halted:
        for prompt in ids:
            given = torch.tensor([prompt], device=model.device)
            mask = torch.ones_like(given)
            answer = model.generate(given, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
            halts.append(halted.report.reason is None)
            answers.append(answer[0, len(prompt) :].tolist())
    return format_policy(halted.policy), halts, answers


def served(folder: Path, ids: list[list[int]], policy: str, mode: str) -> list[list[int]]:
    """The new tokens of each prompt, where vLLM gets all at once."""
    memory = {"kv_cache_memory_bytes": 8 * 2**30} if torch.cuda.is_available() else {}
    llm = vllm.LLM(
        str(folder),
        dtype="float32",
        max_model_len=ROOM,
        max_num_seqs=IN_FLIGHT,
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=False,
        additional_config={"deltahalt": {"policy": policy}},
        **memory,
        **MODES[mode],
    )
    params = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    done = llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params)
    return [list(output.outputs[0].token_ids) for output in done]


def compare(folder: Path, out: Path, mode: str, policy: str) -> None:
    """Add a row."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": text}] for text in questions()]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    text, halts, want = expected(folder, ids, policy)
    got = served(folder, ids, policy, mode)
    lengths = [len(prompt) for prompt in ids]
    row = AgreementRow(
        model=folder.name,
        policy=text,
        mode=mode,
        vllm=vllm.__version__,
        chunk=CHUNK,
        in_flight=IN_FLIGHT,
        prompts=len(ids),
        halted=sum(halts),
        shortest=min(lengths),
        longest=max(lengths),
        new_tokens=NEW_TOKENS,
        same=sum(one == other for one, other in zip(want, got, strict=True)),
        dtype="float32",
        attention="vLLM",
        machine=machine_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        deltahalt=deltahalt.__version__,
        transformers=transformers.__version__,
        torch=torch.__version__,
    )
    append_rows(out, [row])


if __name__ == "__main__":
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TRITON_F32_DEFAULT": "ieee",
    }  # not tf32
    source, file, *chosen = sys.argv[1:]
    how, which, *_ = [*chosen, *("default", "auto")[len(chosen) :]]
    compare(Path(source), Path(file), how, which)
    os._exit(0)  # taking the engine down takes seconds
