"""lm-evaluation-harness with halting: its Hugging Face model, registered as `deltahalt`.

Tokens of prompts and contexts halt; generated and scored tokens never do. With the policy `dense` every score equals
that of lm-eval's own `hf` model. Methods of other stages run through the same class.
"""

import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator
from tqdm import tqdm
from transformers import DynamicCache

from deltahalt.answering.documents import context_ends
from deltahalt.clock import clock
from deltahalt.engine.question import Words
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.compat import CACHE
from deltahalt.lab.rows.eval import Spent
from deltahalt.loading.models import load
from deltahalt.methods.applying import Applied, applying, resolve_on
from deltahalt.methods.base import Ends
from deltahalt.methods.registry import check_method, parse_method

# Options of HFLM that apply to a loaded model; other options go to the policy.
HARNESS_OPTIONS = {
    "add_bos_token",
    "batch_size",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
}
ROLLING = "loglikelihood_rolling"  # lm-eval's type of tasks that score every token of a text
DEFAULT_DEVICE = "cuda:0"  # lm-eval's command passes this by default on every machine

Request = tuple[tuple[str, str] | None, list[int], list[int]]

log = logging.getLogger(__name__)


@register_model("deltahalt")
class DeltahaltLM(HFLM):
    """lm-eval's Hugging Face model, whose prompts halt during generation and log-likelihood.

    Under `accelerate launch` each process has the whole model, on its own device, and a share of the samples.

    Args:
        pretrained: A hub id, a local folder, a .gguf file, or smollm2-135m.
        policy: The text of a method of any stage. Its options may also be separate arguments:
            `policy=dash,start=0.5,keep_first=4`.
        min_prompt_tokens: Shorter prompts are not halted.
        dtype: As in `load`.
        device: As in `load`.
        device_map: As in `load`.
        attention: As in `load`.
        trust_remote_code: As in `load`.
        options: Options of HFLM that apply to a loaded model (HARNESS_OPTIONS), or options of the method.

    Raises:
        InputError: For settings that exclude each other.
        DeltahaltError: What `load`, `parse_method` and `applying` raise.
    """

    def __init__(
        self,
        pretrained: str,
        policy: str = "dense",
        *,
        min_prompt_tokens: int = 0,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        attention: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in HARNESS_OPTIONS & options.keys()}
        method = check_method(policy, options)
        dense = method is not None and method.is_dense
        self.settings: dict[str, Any] = {"min_prompt_tokens": min_prompt_tokens}
        if not dense and str(own.get("batch_size")).startswith("auto"):
            raise InputError(
                f"batch_size={own['batch_size']} needs logits of all tokens, and halted ones have none: give a number"
            )
        if device == DEFAULT_DEVICE and (device_map is not None or not torch.cuda.is_available()):
            device = None
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several and device_map is not None:
            raise InputError(
                f"device_map={device_map!r} spreads one model over devices, and `accelerate launch` runs one model per "
                "process: use one of them"
            )
        accelerator = Accelerator() if several else None
        loaded = load(
            pretrained,
            dtype=dtype,
            device=str(accelerator.device) if accelerator else device,
            device_map=device_map,
            attention=attention,
            trust_remote_code=trust_remote_code,
        )
        self.name = loaded.name
        resolved = resolve_on(loaded.model, policy, options)
        for note in resolved.notes:
            log.warning("%s: %s: %s", policy, note, resolved.text)
        self.policy_text = resolved.text
        self.policy, self.spent = parse_method(self.policy_text), Spent()
        self.cold = True  # no prompt has run yet; the start-up of the first run is not measured
        self.cut: set[int] = set()  # hashes of the prompts so far whose beginning was cut
        self.contexts: dict[str, str] = {}  # by prompt, the part that a prompt-stage method may shorten
        self.questions: dict[str, str] = {}  # by prompt, its question; empty where the task does not give one
        self.asked: list[str] | None = None  # the questions of the batch that `tok_batch_encode` returned last
        with without_warnings(HFLM.__module__):  # it warns that a preloaded model means a single process
            super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", **own)
        if accelerator is not None:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        with self.applying():  # raises PolicyError for a policy that does not fit the model, before any sample runs
            pass

    def applying(self, asked: list[str] | None = None) -> AbstractContextManager[Applied]:
        """Return the context in which the model runs under the method. asked: the prompts' questions, where known."""
        return applying(self.model, self.policy, self.tokenizer, question=asked, timed=True, **self.settings)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._note_contexts(requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._note_contexts(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask [B, T] of prompts, shortened if the method does that."""
        ids, mask = super().tok_batch_encode(strings, padding_side, **kwargs)
        for prompt, length in zip(strings, mask.sum(dim=1).tolist(), strict=True):
            self._note_cut(prompt, length, left_truncate_len)
        ids, mask = (tensor[:, -(left_truncate_len or 0) :] for tensor in (ids, mask))
        self.spent.prompt_tokens += int(mask.sum())
        self.asked = self._asked(strings, [row[real.bool()] for row, real in zip(ids, mask, strict=True)])
        with self.applying() as applied:
            prompts = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            ends = list(map(self._ends, strings, mask.sum(dim=1).tolist()))
            if self.cold:
                applied.shorten(prompts, ends)
            begin = clock()
            short = applied.shorten(prompts, ends)
            self.spent.prefill_seconds += clock() - begin
        return short["input_ids"], short["attention_mask"]

    def _note_contexts(self, requests: list[Any]) -> None:
        self.contexts = {request.args[0]: context_of(request.doc) for request in requests}
        self.questions = {request.args[0]: asked_in(request.doc) for request in requests}

    def _asked(self, prompts: Sequence[str], rows: Sequence[torch.Tensor]) -> list[str] | None:
        """The questions of prompts, for a policy that reads them; None where one is unknown or not in its prompt.

        rows: the token ids [n] of each prompt, without padding, as the model gets them.
        """
        asked = [self.questions.get(prompt, "") for prompt in prompts] if self.policy.reads_question else []
        for text, ids in zip(asked, rows, strict=False):
            if not text or not Words.of(text, self.tokenizer).found(ids, len(ids)).any():
                return None
        return sorted(set(asked)) or None

    def _note_cut(self, prompt: Hashable, length: int, room: int | None) -> None:
        """Record and log a prompt of `length` tokens whose beginning is cut, if it has more than `room`."""
        if room and length > room:
            self.cut.add(hash(prompt))
            log.warning("a prompt of %d tokens is cut to its last %d", length, room)

    def _ends(self, prompt: str, tokens: int) -> Ends | None:
        if not self.policy.reads_ends:
            return None
        return context_ends(self.tokenizer, prompt, self.contexts.get(prompt, ""), tokens)

    def close(self) -> None:
        """Wait for the other processes, then leave their group; leaving early would break their transfers."""
        if self.world_size > 1:
            self.accelerator.end_training()

    @torch.inference_mode()
    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.applying(self.asked) as applied:
            if self.cold:
                self.model(context, attention_mask=kwargs.get("attention_mask"), logits_to_keep=1)
                self.cold = False
            begin = clock()
            tokens = super()._model_generate(context, *args, **kwargs)
            self.spent.add(applied.halted.report, tokens, clock() - begin)
        return tokens

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.applying():
            return super()._model_call(*args, **kwargs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihoods of whole texts. Raises UnsupportedError unless the policy is dense."""
        self.require_prompts(requests[0].task_name or "this task" if requests else "this task", ROLLING)
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def require_prompts(self, task: str, kind: str) -> None:
        """Raise UnsupportedError for a task whose `kind` scores whole texts, unless the policy is dense."""
        if kind == ROLLING and not self.policy.is_dense:
            raise UnsupportedError(
                f"{task} scores every token of a text, and halted tokens have no logits: run it with policy=dense"
            )

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return for each (text, context, continuation) its log-likelihood in nats, and whether it is greedy."""
        for _, context, continuation in requests:
            self._note_cut(tuple(context), len(context), self._room(continuation))
        if self.policy.is_dense:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        ordered = Collator(requests, sort_fn=lambda request: (-len(request[1]), request[1]))
        answers: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="scoring continuations") as bar:
            for chunk in ordered.get_batched(n=self.batch_size):
                prompts = [context[-self._room(continuation) :] for _, context, continuation in chunk]
                ends = [
                    self._ends(text[0], len(ids)) if text else None
                    for (text, _, _), ids in zip(chunk, prompts, strict=True)
                ]
                texts = [text[0] if text else "" for text, _, _ in chunk]
                asked = self._asked(texts, list(map(torch.tensor, prompts)))
                with self.applying(asked) as applied, torch.inference_mode():
                    rows = continue_prompts(applied, prompts, [continuation for _, _, continuation in chunk], ends)
                for (text, _, continuation), logits in zip(chunk, rows, strict=True):
                    answers.append(_judge(logits, continuation, self.softmax_dtype))
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, answers[-1])
                bar.update(len(chunk))
        return ordered.get_original(answers)

    def _room(self, continuation: list[int]) -> int:
        """Return the number of context tokens that HFLM keeps before a continuation."""
        return self.max_length + 1 - len(continuation)


def continue_prompts(
    applied: Applied,
    prompts: Sequence[list[int]],
    continuations: Sequence[list[int]],
    ends: Sequence[Ends | None],
) -> list[torch.Tensor]:
    """Return for each continuation the logits [n, V] that predict its n tokens.

    The prompts run as one left-padded prefill, in which tokens halt. The continuations run on its cache and do not
    halt. ends: for each prompt, the number of tokens before and after its context, if known.
    """
    model = applied.model
    width, longest = max(map(len, prompts)), max(map(len, continuations)) - 1
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    ids, mask = applied.shorten({"input_ids": ids, "attention_mask": mask}, ends).values()
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    inputs = {CACHE: cache, "use_cache": True}
    logits = [model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **inputs).logits]  # [B, 1, V]
    # Shorter continuations are padded on the right; causal attention never reads that padding.
    more = torch.tensor([row[:-1] + [0] * (longest + 1 - len(row)) for row in continuations], device=model.device)
    for tokens in more.split(1 if applied.by_token else max(longest, 1), dim=1):
        if tokens.shape[1]:
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            positions = positions[:, -1:] + torch.arange(1, tokens.shape[1] + 1, device=model.device)
            later = model(tokens, attention_mask=mask, position_ids=positions, **inputs).logits  # [B, n, V]
            logits.append(later.to(logits[0].device))
    every = torch.cat(logits, dim=1)
    return [row[: len(continuation)] for row, continuation in zip(every, continuations, strict=True)]


def context_of(doc: Any) -> str:
    """Return the document if a task separates it from the question, as LongBench and LooGLE do; else an empty text."""
    fields = doc if isinstance(doc, dict) else {}
    return str(fields.get("context") or (fields.get("input", "") if "question" in fields else ""))


def asked_in(doc: Any) -> str:
    """Return the question if a task gives it apart, as LongBench and LooGLE do; else an empty text."""
    return str(doc.get("question") or "").strip() if isinstance(doc, dict) else ""


def _judge(logits: torch.Tensor, continuation: list[int], dtype: torch.dtype | None) -> tuple[float, bool]:
    tokens = torch.tensor(continuation, device=logits.device)
    chances = torch.log_softmax(logits, dim=-1, dtype=dtype).gather(1, tokens[:, None])  # [n, 1]
    return float(chances.sum()), bool((logits.argmax(dim=-1) == tokens).all())


@contextmanager
def without_warnings(module: str) -> Iterator[None]:
    """Silence the warnings of a module of lm-eval inside the `with` block."""
    logger = logging.getLogger(module)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
