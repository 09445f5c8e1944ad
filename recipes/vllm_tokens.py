"""Compare the tokens that prompts get in vLLM with those of the core engine, in float32.

usage: vllm_tokens.py MODEL OUT.jsonl [MODE [SOURCE [POLICY]]]

MODEL: a folder with a model and its tokenizer. MODE: `default`, `graphs` or `eager`, as in time_vllm.py. SOURCE:
`pages`, parts of this project's pages and code of mixed lengths, each with a question; or `shapes`, a prompt of each
shape of `deltahalt shapes`. Both are in the model's chat format. POLICY: `auto` if it is left out. A row is added to
OUT.jsonl. It needs vLLM.
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
from deltahalt.lab.bench.serving import MODES
from deltahalt.lab.evaluation.shapes.base import ShapedPrompt, user
from deltahalt.lab.evaluation.shapes.registry import make_prompt, shape_names
from deltahalt.lab.rows.base import append_rows
from deltahalt.policies.text import format_policy

PROJECT = Path(__file__).parents[1]
PAGES, CHARACTERS = 100, (900, 18_000)  # number of parts, and their shortest and longest
SHAPED, SEED = 1_300, 1  # about the number of tokens in a prompt of a shape
NEW_TOKENS, CHUNK = {"pages": 24, "shapes": 64}, {"pages": 2_048, "shapes": 1_024}
IN_FLIGHT = 16
ROOM = 8_192  # tokens


def pages() -> list[ShapedPrompt]:
    """Parts of this project's files, whose lengths are drawn evenly on a logarithmic scale, each with a question."""
    files = sorted([*PROJECT.glob("docs/**/*.md"), *PROJECT.glob("src/**/*.py")])
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    draw, least, most = random.Random(0), *CHARACTERS
    asked = []
    for _ in range(PAGES):
        length = int(least * (most / least) ** draw.random())
        begin = draw.randrange(len(text) - length)
        part = text[begin : begin + length]
        word = draw.choice(re.findall(r"[A-Za-z]{4,}", part))
        question = f"What is said about {word} in the text above?"
        asked.append(ShapedPrompt("page", 0, (user(f"{part}\n\n{question}"),), answer="", question=question))
    return asked


def token_ids(folder: Path, source: str) -> list[list[int]]:
    """The tokens of each prompt, in the model's chat format."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    given = pages() if source == "pages" else [make_prompt(name, SEED, SHAPED) for name in shape_names()]
    return [
        tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
        if prompt.chat
        else tokenizer(prompt.text)["input_ids"]
        for prompt in given
    ]


def expected(folder: Path, ids: list[list[int]], policy: str, new: int) -> tuple[str, list[bool], list[list[int]]]:
    """The policy's text, and for each prompt whether tokens halt in it, and the core engine's new tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    halts, answers = [], []
    with torch.no_grad(), deltahalt.halting(model, policy) as halted:
        for prompt in ids:
            given = torch.tensor([prompt], device=model.device)
            mask = torch.ones_like(given)
            answer = model.generate(given, attention_mask=mask, max_new_tokens=new, do_sample=False)
            halts.append(halted.report.reason is None)
            answers.append(answer[0, len(prompt) :].tolist())
    return format_policy(halted.policy), halts, answers


def served(folder: Path, ids: list[list[int]], policy: str, new: int, chunk: int, mode: str) -> list[list[int]]:
    """The new tokens of each prompt, where vLLM gets all at once."""
    memory = {"kv_cache_memory_bytes": 8 * 2**30} if torch.cuda.is_available() else {}
    llm = vllm.LLM(
        str(folder),
        dtype="float32",
        max_model_len=ROOM,
        max_num_seqs=IN_FLIGHT,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=False,
        additional_config={"deltahalt": {"policy": policy}},
        **memory,
        **MODES[mode],
    )
    params = vllm.SamplingParams(temperature=0, max_tokens=new)
    done = llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params)
    return [list(output.outputs[0].token_ids) for output in done]


def compare(folder: Path, out: Path, mode: str, source: str, policy: str) -> None:
    """Add a row."""
    new, chunk, ids = NEW_TOKENS[source], CHUNK[source], token_ids(folder, source)
    text, halts, want = expected(folder, ids, policy, new)
    got = served(folder, ids, policy, new, chunk, mode)
    lengths = [len(prompt) for prompt in ids]
    row = AgreementRow(
        model=folder.name,
        policy=text,
        source=source,
        mode=mode,
        vllm=vllm.__version__,
        chunk=chunk,
        in_flight=IN_FLIGHT,
        prompts=len(ids),
        halted=sum(halts),
        shortest=min(lengths),
        longest=max(lengths),
        new_tokens=new,
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
        "TRITON_F32_DEFAULT": "ieee",  # else kernels round float32 to tf32
    }
    folder, file, *chosen = sys.argv[1:]
    defaults = ("default", "pages", "auto")
    compare(Path(folder), Path(file), *chosen, *defaults[len(chosen) :])
    os._exit(0)  # taking the engine down takes seconds
