"""Prompts of many shapes, made from seeds: the same facts asked for in the ways that people write prompts."""

from deltahalt.lab.evaluation.shapes.base import Message, ShapedPrompt
from deltahalt.lab.evaluation.shapes.registry import (
    SHAPES,
    calibration_seeds,
    held_out_seeds,
    make_prompt,
    make_prompts,
    shape_names,
)

__all__ = [
    "SHAPES",
    "Message",
    "ShapedPrompt",
    "calibration_seeds",
    "held_out_seeds",
    "make_prompt",
    "make_prompts",
    "shape_names",
]
