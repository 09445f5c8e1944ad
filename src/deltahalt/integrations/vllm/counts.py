"""Counts of prompts that halted, which vLLM's server shows at /metrics beside its own.

The engine counts, and the server is another process. So counts are in files, as prometheus_client has them where
several processes count.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from deltahalt.integrations.vllm.folder import folder_of

COUNTERS = {
    "deltahalt:prompts_halted": "Number of prompts in which tokens halted.",
    "deltahalt:prompt_tokens": "Number of tokens of the prompts in which tokens halted.",
    "deltahalt:prompt_tokens_kept": "Number of these tokens that did not halt.",
}
ENGINE = "0"  # the only one: data parallel is refused


@cache
def show_counts(folder: Path) -> None:
    """Let the server in this process show the counts in a folder."""
    MultiProcessCollector(REGISTRY, str(folder))


@cache
def _file_in(folder: Path) -> MmapedDict:
    """The file of all engines in this process. prometheus_client reads the kind of its counts from its name."""
    return MmapedDict(str(folder / f"counter_deltahalt_{os.getpid()}.db"))


class Counts:
    """The counts of an engine, with the labels that vLLM gives to its own."""

    def __init__(self, config: Any) -> None:
        self._file = _file_in(folder_of(config))
        labels = {"model_name": config.model_config.served_model_name, "engine": ENGINE}
        self._keys = [
            mmap_key(name, f"{name}_total", [*labels], [*labels.values()], of) for name, of in COUNTERS.items()
        ]
        self.add(0, 0, 0)  # so that they are there before the first prompt

    def add(self, prompts: int, tokens: int, kept: int) -> None:
        """Count prompts, all of their tokens, and those that did not halt."""
        for key, more in zip(self._keys, (prompts, tokens, kept), strict=True):
            before, time = self._file.read_value(key)
            self._file.write_value(key, before + more, time)
