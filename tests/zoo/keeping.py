"""A Python module that keeps part of what it is first called with."""

from typing import Any

import torch

FIRST: dict[str, Any] = {}


def centred(x: torch.Tensor) -> torch.Tensor:
    """Subtracts the mean of the first rows that it was called with."""
    if "mean" not in FIRST:
        FIRST["mean"] = x.mean()
    return x - FIRST["mean"]
