"""What differs between the versions of vLLM that are supported. Nothing else does."""

from collections.abc import Sequence
from importlib import import_module

import torch

from deltahalt.errors import UnsupportedError

SUPPORTED = ("0.26", "0.32")
PACKAGE = "deltahalt.integrations.vllm"
WORKER_V1 = f"{PACKAGE}.runner_v1.HaltingCPUWorker"
SCHEDULER = f"{PACKAGE}.scheduler.halting_scheduler"


def installed() -> str:
    """The version of the installed vLLM."""
    version: str = import_module("vllm").__version__
    return version


def minor(version: str) -> str:
    """The minor version, such as 0.32, of a full one, such as 0.32.0+cpu."""
    return ".".join(version.split(".")[:2])


def refuse_unknown(version: str) -> None:
    """Raise UnsupportedError for a version of vLLM that halting was not tested with."""
    if minor(version) not in SUPPORTED:
        raise UnsupportedError(
            f"vLLM {version} is not supported: halting depends on parts of vLLM that change between its minor "
            f"versions. Install {' or '.join(f'{known}.*' for known in SUPPORTED)}, or leave deltahalt out of "
            "--additional-config"
        )


class Unnoticed(list[str]):
    """Logits processors that vLLM's check of requests reads, and that count as none elsewhere.

    With logits processors vLLM 0.26 chooses runner V1, though V2 needs to know nothing of one that only checks.
    """

    def __bool__(self) -> bool:
        return False


def with_check(processors: Sequence[str] | None, *, runner_v2: bool) -> list[str]:
    """A model's logits processors, and the one that refuses requests."""
    old_v2 = runner_v2 and minor(installed()) == "0.26"
    check = f"{PACKAGE}.check_v2:RequestCheckV2" if runner_v2 and not old_v2 else f"{PACKAGE}.check_v1:RequestCheckV1"
    return (Unnoticed if old_v2 else list)([*(processors or ()), check])


def counts_on_cpu(lengths: torch.Tensor, computed: torch.Tensor) -> dict[str, torch.Tensor]:
    """By name, further fields of 0.26's CommonAttentionMetadata.

    lengths, computed: [requests] number of tokens that each holds after the step, and before it; on the CPU.
    """
    return {"_seq_lens_cpu": lengths, "_num_computed_tokens_cpu": computed} if minor(installed()) == "0.26" else {}
