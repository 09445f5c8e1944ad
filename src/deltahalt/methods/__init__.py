"""Methods: everything that `--policy` takes, and how each is applied to a model."""
