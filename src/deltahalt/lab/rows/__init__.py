"""Rows of measurements, and the files they are stored in."""
