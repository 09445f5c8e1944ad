"""Train the small Qwen2-VL that vision accuracy is measured on.

usage: python3 train.py --minutes 9 --out model --log log.jsonl

Needs torch, transformers, numpy, pillow and a GPU, and deltahalt installed or its src/ on PYTHONPATH; --tiny tries the
script out on a CPU in seconds. The best model so far is always in --out, in fp16, with its tokenizer and image
processor. A line of --log is a JSON object.
"""

import argparse
import copy
import json
import math
import os
import queue
import random
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from batches import FINAL, Batch, Maker, Workers, stage
from model import BEFORE_IMAGE, Batched, build_image_processor, build_model, build_tokenizer
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.lab.evaluation.pictures.questions import ASKED, KINDS, ask
from deltahalt.lab.evaluation.pictures.scenes import COLOURS, HELD_OUT, NAMES, make_scene, render


class Log:
    """JSON lines, with the seconds since the start."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.start = path.open("w", encoding="utf-8"), time.monotonic()

    def __call__(self, **row: Any) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - self.start, 1), **row})
        self.file.write(line + "\n")
        self.file.flush()
        print(line, flush=True)  # noqa: T201


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A copy of the batch as tensors."""
    return {field.name: torch.from_numpy(getattr(batch, field.name)).to(device, copy=True) for field in fields(batch)}


def prefetch(workers: Workers, device: torch.device) -> "queue.Queue[dict[str, Tensor]]":
    """Batches on the device, copied by a thread on a stream of its own."""
    ready: queue.Queue[dict[str, Tensor]] = queue.Queue(maxsize=3)
    stream = torch.cuda.Stream() if device.type == "cuda" else None

    def fill() -> None:
        with torch.cuda.stream(stream):
            while True:
                batch = workers.next(lambda batch: to_device(batch, device))
                if stream is not None:
                    stream.synchronize()
                ready.put(batch)

    threading.Thread(target=fill, daemon=True).start()
    return ready


def losses(net: Batched, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and of what the visual tokens show."""
    logits, names, colours = net(batch["images"], batch["ids"].long(), batch["segment"])
    answer = F.cross_entropy(logits.flatten(0, 1).float(), batch["target"].long().flatten(), ignore_index=-100)
    shown = batch["shown"].long().flatten(0, 2)
    parts = []
    for scores, truth in ((names, shown[:, 0]), (colours, shown[:, 1])):
        weight = torch.ones(scores.shape[-1], device=scores.device)
        weight[0] = 0.1  # most tokens show nothing
        parts.append(F.cross_entropy(scores.flatten(0, 1).float(), truth, weight))
    return answer, sum(parts)


@torch.no_grad()
def accuracy(net: Batched, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Share of right answers for each kind of question, of answers right in every token; `glyphs`: of visual tokens.

    An answer is right in every token just when greedy decoding gives it.
    """
    right, total = torch.zeros(2, len(KINDS) + 1, device=net.mean.device)
    glyphs = []
    for batch in batches:
        logits, names, _ = net(batch["images"], batch["ids"].long(), batch["segment"])
        target, segment, kinds = batch["target"].long(), batch["segment"].long(), batch["kinds"].long()
        wrong = ((logits.argmax(-1) != target) & (target != -100)).long()
        mistakes = torch.zeros(len(kinds), kinds.shape[1] + 1, device=wrong.device, dtype=torch.long)
        mistakes.scatter_add_(1, segment, wrong)
        right.scatter_add_(0, kinds.flatten(), (mistakes[:, 1:] == 0).float().flatten())
        total.scatter_add_(0, kinds.flatten(), torch.ones_like(kinds.flatten(), dtype=torch.float))
        shown = batch["shown"][..., 0].long().flatten(1, 2)
        glyphs.append((names.argmax(-1) == shown)[shown > 0].float().mean())
    share = (right / total.clamp(min=1))[1:].tolist()
    by_kind = {kind: round(part, 4) for kind, part in zip(KINDS, share, strict=True)}
    mean = sum(by_kind[kind] for kind in ASKED) / len(ASKED)
    return {"mean": round(mean, 4), **by_kind, "glyphs": round(torch.stack(glyphs).mean().item(), 4)}


def optimizer_of(net: Batched, device: torch.device, rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, and not the embedding."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        groups[parameter.ndim > 1 and "embed_tokens" not in name].append(parameter)
    options = [{"params": groups[True], "weight_decay": 0.05}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(options, lr=rate, betas=(0.9, 0.98), fused=device.type == "cuda")


def schedule(progress: float) -> float:
    """Learning rate's share of its peak: a short warm-up, then half a cosine to zero."""
    return min(progress / 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def save(net: Batched, tokenizer: Any, out: Path) -> None:
    """The model in fp16 with what is needed to use it, without the auxiliary heads."""
    copy.deepcopy(net.model).half().save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    build_image_processor().save_pretrained(out)


def from_folder(folder: Path) -> Any:
    """A saved model, in fp32."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def generated_accuracy(out: Path, device: torch.device, images: int) -> float:
    """Share of right answers of the saved model by `generate`, in batches of two sizes with padding on the left."""
    model = from_folder(out).to(device).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(out), build_image_processor()
    draw, right, total = random.Random(0), 0, 0
    for first in range(0, images, 8):
        pictures, questions, answers = [], [], []
        for seed in range(HELD_OUT + first, HELD_OUT + first + 8):
            scene = make_scene(seed, 256 if seed % 2 else 192, 256, held_out=True)
            for kind in draw.sample(ASKED, len(ASKED)):
                if pair := ask(scene, kind, draw):
                    pictures.append([Image.fromarray(render(scene))])
                    questions.append(pair[0])
                    answers.append(pair[1])
                    break
        inputs = picture_inputs(model, tokenizer, processor, pictures, questions)
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text == answer for text, answer in zip(texts, answers, strict=True))
        total += len(answers)
    return right / total


@torch.no_grad()
def check_forward(net: Batched, tokenizer: Any, maker: Maker) -> float:
    """Largest difference between the logits of the batched forward and of Hugging Face's, at a row's last question."""
    batch = to_device(maker.make(range(HELD_OUT, HELD_OUT + 1), (128, 192), FINAL, held_out=True), net.mean.device)
    segment = batch["segment"][0]
    chosen = segment == segment.max()
    logits = net(batch["images"], batch["ids"].long(), batch["segment"])[0][0, chosen]
    picture = Image.fromarray(batch["images"][0].cpu().numpy())
    inputs = picture_inputs(net.model, tokenizer, build_image_processor(), [[picture]], [""])
    before = int((inputs["input_ids"][0] == net.model.config.vision_end_token_id).nonzero()) + 1
    ids = torch.cat([inputs["input_ids"][0, :before], batch["ids"][0, chosen].long()])[None]
    vision = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    types = (ids == net.model.config.image_token_id).int()
    expected = net.model(input_ids=ids, mm_token_type_ids=types, **vision).logits[0, before:]
    return (logits - expected).abs().max().item()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18, help="wall clock, from start to end")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--tokens", type=int, default=65536, help="visual and text tokens in a batch")
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--start", type=Path, help="a saved model to train on, without the curriculum")
    parser.add_argument("--tiny", action="store_true", help="two layers and small batches")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate every half minute, keep the best, and check that it loads and answers."""
    options = arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    disable_progress_bar()
    log = Log(options.log)
    tokenizer = AutoTokenizer.from_pretrained(options.start) if options.start else build_tokenizer()
    maker = Maker(tokenizer, 2048 if options.tiny else options.tokens)
    workers = Workers(maker, 1 if options.tiny else options.workers, 2 if options.tiny else 2 * options.workers)
    try:
        train(options, log, tokenizer, maker, workers)
    finally:
        workers.stop()


def train(options: argparse.Namespace, log: Log, tokenizer: Any, maker: Maker, workers: Workers) -> None:
    """The loop; learning rate and curriculum follow the clock, so that the rate always ends at zero."""
    end = log.start + 60 * options.minutes - (5 if options.tiny else 30)  # time to load and to generate
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prefix = tokenizer(BEFORE_IMAGE)["input_ids"]
    model = from_folder(options.start) if options.start else build_model(tokenizer, tiny=options.tiny)
    net = Batched(model, len(NAMES) + 1, len(COLOURS) + 1, prefix).to(device)
    difference = check_forward(net, tokenizer, maker)
    log(parameters=net.model.num_parameters(), vocabulary=len(tokenizer), difference=difference)
    torch.set_float32_matmul_precision("high")
    tests = held_out(maker, device, 8 if options.tiny else 512)
    optimizer = optimizer_of(net, device, options.rate)
    ready = prefetch(workers, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    if device.type == "cuda" and not options.no_compile:
        warm_up(net, maker, autocast, log)
    start = last = time.monotonic()
    best, images, steps, waited = -1.0, 0, 0, 0.0
    means = torch.zeros(2, device=device)
    while True:
        progress = (time.monotonic() - start) / (end - start)
        workers.progress.value = max(progress, 0.4) if options.start else progress
        done = progress >= 1
        if done or time.monotonic() - last > (2 if options.tiny else 30):
            with autocast, torch.compiler.set_stance("force_eager"):
                shares = accuracy(net, tests)
            spent = time.monotonic() - last
            log(
                progress=round(progress, 3), steps=steps, images_a_second=round(images / spent),
                waited=round(waited / spent, 2), loss=[round(mean / max(steps, 1), 4) for mean in means.tolist()],
                accuracy=shares,
            )  # fmt: skip
            if shares["mean"] > best:
                best = shares["mean"]
                save(net, tokenizer, options.out)
            images, steps, waited, last = 0, 0, 0.0, time.monotonic()
            means.zero_()
        if done:
            break
        asked = time.monotonic()
        batch = ready.get(timeout=120)
        waited += time.monotonic() - asked
        if device.type == "cuda":
            for tensor in batch.values():
                tensor.record_stream(torch.cuda.current_stream())
        for group in optimizer.param_groups:
            group["lr"] = options.rate * schedule(progress)
        with autocast:
            answer, shown = losses(net, batch)
        (answer + max(0.1, 1 - 2 * progress) * shown).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        means += torch.stack([answer.detach(), shown.detach()])
        images, steps = images + len(batch["images"]), steps + 1
    log(generated=generated_accuracy(options.out, device, 8 if options.tiny else 256))


def held_out(maker: Maker, device: torch.device, count: int) -> list[dict[str, Tensor]]:
    """The held-out questions, in batches of one size."""
    sizes = [(256, 256), (192, 256), (256, 192), (256, 256)]
    part = count // len(sizes)
    parts = [range(HELD_OUT + at * part, HELD_OUT + (at + 1) * part) for at in range(len(sizes))]
    return [
        to_device(maker.make(seeds, size, FINAL, held_out=True), device)
        for seeds, size in zip(parts, sizes, strict=True)
    ]


def warm_up(net: Batched, maker: Maker, autocast: Any, log: Log) -> None:
    """Compile for every size of image; train uncompiled if that fails."""
    net.compile()
    try:
        for size in ((128, 128), (192, 256), (256, 256)):
            batch = to_device(maker.make(range(maker.rows(size)), size, stage(0.0)), net.mean.device)
            with autocast:
                answer, shown = losses(net, batch)
            (answer + shown).backward()
    except Exception as error:  # noqa: BLE001
        net.compile(False)
        log(not_compiled=repr(error)[:500])
    net.zero_grad()
    log(warm=True)


if __name__ == "__main__":
    main()
