"""Prompt-stage methods, one a file: they choose which tokens of a prompt the model reads at all."""
