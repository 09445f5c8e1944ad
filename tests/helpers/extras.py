"""What tests need beside deltahalt's own dependencies, and why one is skipped where that is not installed."""

from importlib.util import find_spec

import pytest

REASONS = {
    "PIL": "pictures need Pillow, which is not installed: pip install 'deltahalt[vision]'",
    "matplotlib": "figures need matplotlib, which is not installed: pip install 'deltahalt[plot]'",
}
needs_pillow = pytest.mark.skipif(find_spec("PIL") is None, reason=REASONS["PIL"])
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason=REASONS["matplotlib"])
