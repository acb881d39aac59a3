"""The models of the comparison, with the same architectures and weights in every server. Needs only torch."""

import itertools

import torch
from torch import nn


class Noop(nn.Module):
    """Returns its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 16] -> [batch, 16]."""
        return x.clone()


def mlp(*widths: int) -> nn.Module:
    """Linear layers of these widths with ReLU between."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


WIDTHS = {"mlp": (784, 512, 512, 10), "m5": (64, 4480, 4480, 10)}
INPUTS = {"noop": 16, "mlp": 784, "m5": 64}  # floats of one row


def build(name: str) -> nn.Module:
    """The model in eval mode, on one thread; its weights depend only on its name."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return (Noop() if name == "noop" else mlp(*WIDTHS[name])).eval()
