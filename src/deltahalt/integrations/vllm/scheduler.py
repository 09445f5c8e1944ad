"""vLLM's schedulers where prompts halt."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from deltahalt.integrations.vllm.freeing import Freeing
from deltahalt.integrations.vllm.noting import Noting
from deltahalt.integrations.vllm.sharing import Sharing


class HaltingScheduler(Sharing, Freeing, Noting, Scheduler):
    """vLLM's scheduler, with blocks shared by tokens that never halt alone, none for those that halt, and notes."""


class HaltingAsyncScheduler(Sharing, Freeing, Noting, AsyncScheduler):
    """vLLM's asynchronous scheduler with the same."""


def halting_scheduler(*, vllm_config: Any, **options: Any) -> Noting:
    """The scheduler for a VllmConfig. vLLM decides whether it is asynchronous after halting is configured."""
    chosen = HaltingAsyncScheduler if vllm_config.scheduler_config.async_scheduling else HaltingScheduler
    return chosen(vllm_config=vllm_config, **options)
