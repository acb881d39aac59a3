"""A Python module that keeps something of what it is called with first."""

from typing import Any

import torch

FIRST: dict[str, Any] = {}


def centred(x: torch.Tensor) -> torch.Tensor:
    """Without the mean of the first rows that came."""
    if "mean" not in FIRST:
        FIRST["mean"] = x.mean()
    return x - FIRST["mean"]
