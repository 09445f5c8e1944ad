"""Efficiency: time and memory of prefill and generation, for the full model and under policies."""
