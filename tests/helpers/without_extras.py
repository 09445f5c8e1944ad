"""A pytest plugin (`-p helpers.without_extras`): what tests do where no extra is installed."""

import sys
from typing import Any

hidden: dict[str, Any] = {"PIL": None, "matplotlib": None}
sys.modules.update(hidden)
