"""Integrations with other frameworks, one per file; each needs its framework installed."""
