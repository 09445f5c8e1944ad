"""Figures of measured rows. A figure reads rows and never runs a model."""
