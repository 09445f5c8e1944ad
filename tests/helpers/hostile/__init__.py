"""Hostile inputs, as tables: commands, and calls of the Python API."""
