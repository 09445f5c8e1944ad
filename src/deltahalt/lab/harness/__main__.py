"""lm-eval's own command, `python -m deltahalt.lab.harness --model deltahalt ...`, which knows the model `deltahalt`.

lm-eval up to 0.4.13 looks for models in its own package only; later versions find `deltahalt` by the entry point.
"""

from lm_eval.__main__ import cli_evaluate

import deltahalt.integrations.lm_eval  # noqa: F401 (registers the model)

cli_evaluate()
