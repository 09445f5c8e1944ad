"""Euclidean norms of states."""

import torch


def norms(rows: torch.Tensor) -> torch.Tensor:
    """Norm of each vector in the last dimension, in float32; in float64 for float64, which torch does not narrow."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
