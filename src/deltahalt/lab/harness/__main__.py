"""Run lm-eval's own command with the model `deltahalt`: `python -m deltahalt.lab.harness --model deltahalt ...`.

lm-eval up to 0.4.13 looks for models in its own package only; later versions find `deltahalt` by its entry point.
"""

from lm_eval.__main__ import cli_evaluate

import deltahalt.integrations.lm_eval  # noqa: F401 (registers the model)

cli_evaluate()
