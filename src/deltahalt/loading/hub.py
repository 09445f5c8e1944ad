"""The Hugging Face hub: whether it can be reached, asked before its client tries again for half a minute."""

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from deltahalt.errors import ModelError

PATIENCE = 5.0  # seconds to wait for a connection


def require_hub(name: str) -> None:
    """Raise ModelError at once for a hub id that is not in the cache, where the hub cannot be reached.

    Nothing is checked for a local folder, behind a proxy, or where `HF_HUB_OFFLINE` is set.
    """
    try:
        known = Path(name).exists() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except (HFValidationError, OSError, ValueError):  # not a name at all, which the client says in words
        return
    if known or constants.HF_HUB_OFFLINE or getproxies():
        return
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=PATIENCE).close()
    except OSError as error:
        raise ModelError(
            f"{name} is not a local folder, and the hub at {hub.hostname} cannot be reached ({error}): check the name "
            "and the network, or give a folder or a .gguf file"
        ) from error
