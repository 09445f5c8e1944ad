"""Measurements: accuracy, speed, figures, and the rows that results are stored in."""
