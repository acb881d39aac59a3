"""Modules that no package may serve, as factories: what a worker is given that write_package has not seen."""

import torch
from torch import nn
from torch.nn import functional


class Weighted(nn.Module):
    """One weight, so that there is something to load."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Sound(Weighted):
    """Keeps all rules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight


class Counts(Weighted):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        self.calls += 1
        return x * self.weight


class AddsNothing(Weighted):
    """Writes to its weights what they hold already."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        self.weight.add_(0)
        return x * self.weight


class Remembers(Weighted):
    """Carries what it was asked into the next answer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        self.mean.copy_(0.5 * self.mean + 0.5 * x.mean(0))
        return x * self.weight + self.mean


class Largest(Weighted):
    """Divides by the largest of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight / x.abs().max()


class Sorts(Weighted):
    """Gives rows in an order of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x[torch.argsort(x[:, 0])] * self.weight


class Places(Weighted):
    """Adds the row's place in the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight + torch.arange(x.shape[0])[:, None]


class Sizes(Weighted):
    """Divides by the number of rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight / x.shape[0]


class Drops(Weighted):
    """Leaves out at random."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return functional.dropout(x * self.weight, 0.5, training=True)


class OneMore(Weighted):
    """Gives its first row twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch + 1, 4]."""
        return torch.cat([x, x[:1]]) * self.weight


class TwiceAbove100(Weighted):
    """Gives a row whose first value is above 100 twice, and others once: what is tried does not show it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch or more, 4]."""
        return torch.repeat_interleave(x * self.weight, (x[:, 0] > 100).to(torch.int64) + 1, dim=0)


class OneRowLost(Weighted):
    """Gives one row for all where the first value of one is above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch or 1, 4]."""
        return x[:1] * self.weight if bool((x[:, 0] > 100).any()) else x * self.weight


class Gate(Weighted):
    """Adds the batch's mean where its weights are large: with ones, as they are at first, it keeps all rules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x + torch.where(self.weight > 1.5, x.mean(0, keepdim=True).expand_as(x), 0.0)


class Centred(Weighted):
    """Takes the batch's mean off each row: sound as long as there is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x - self.weight * x.mean(0, keepdim=True)


class OneRow(Weighted):
    """Takes one row at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 4] -> [1, 4]."""
        return (x.reshape(4) * self.weight)[None]


class WritesLarge(Weighted):
    """Writes to its weights, but not where there is one row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        if x.shape[0] > 1:
            self.weight.add_(1)
        return x * self.weight


class Raises(Weighted):
    """Cannot be run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Never returns."""
        raise ValueError("never")
