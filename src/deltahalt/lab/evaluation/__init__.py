"""Accuracy at speed: samples, and many policies measured on each with one pass through the shallow layers."""
