"""A folder in which the processes of an engine leave what vLLM does not carry between them: the policy, and counts."""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from deltahalt.policies.base import Policy
from deltahalt.policies.text import format_policy, parse_policy

ENTRY = "deltahalt_folder"  # of additional_config, which vLLM gives to each of its processes
OF_SEVERAL_SERVERS = "PROMETHEUS_MULTIPROC_DIR"  # names the folder that vLLM's servers read, where there are several


@cache
def _made() -> tempfile.TemporaryDirectory[str]:
    """The folder of all engines that this process starts. It is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="deltahalt-")


def name_folder(config: Any) -> None:
    """Name the folder in a VllmConfig, for the processes that are started with it."""
    named = os.environ.get(OF_SEVERAL_SERVERS) or _made().name
    config.additional_config = {ENTRY: named, **config.additional_config}


def folder_of(config: Any) -> Path:
    """The folder that a VllmConfig names."""
    return Path(config.additional_config[ENTRY])


def leave_policy(config: Any, policy: Policy) -> None:
    """Leave the policy, which a worker finds by the weights, for the scheduler of the same engine."""
    _policy_file(config).write_text(format_policy(policy), encoding="utf-8")


def left_policy(config: Any) -> Policy:
    """The policy that `leave_policy` left."""
    policy: Any = parse_policy(_policy_file(config).read_text(encoding="utf-8"))
    return policy


def _policy_file(config: Any) -> Path:
    return folder_of(config) / f"{config.instance_id}.policy"
