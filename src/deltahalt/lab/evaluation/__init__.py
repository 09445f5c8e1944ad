"""Accuracy against speed: samples, and sweeps that measure many policies with one pass through the shallow layers."""
