"""Methods of every stage: what `--policy` names, and how each is applied to a model."""
