"""Modules that no package may serve, as factories: what a worker gets that write_package has not checked."""

import torch
from torch import nn
from torch.nn import functional


class Weighted(nn.Module):
    """Has one weight, so that there is something to load."""

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
    """Writes to its weights the values that they hold already."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        self.weight.add_(0)
        return x * self.weight


class Remembers(Weighted):
    """Carries one request into the answer to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        self.mean.copy_(0.5 * self.mean + 0.5 * x.mean(0))
        return x * self.weight + self.mean


class Largest(Weighted):
    """Divides by the largest value of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight / x.abs().max()


class Sorts(Weighted):
    """Returns the rows in another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x[torch.argsort(x[:, 0])] * self.weight


class Places(Weighted):
    """Adds the row's position in the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight + torch.arange(x.shape[0])[:, None]


class Sizes(Weighted):
    """Divides by the number of rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * self.weight / x.shape[0]


class Drops(Weighted):
    """Applies dropout at random."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return functional.dropout(x * self.weight, 0.5, training=True)


class OneMore(Weighted):
    """Returns its first row twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch + 1, 4]."""
        return torch.cat([x, x[:1]]) * self.weight


class TwiceAbove100(Weighted):
    """Returns a row twice if its first value is above 100, which no check tries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch or more, 4]."""
        return torch.repeat_interleave(x * self.weight, (x[:, 0] > 100).to(torch.int64) + 1, dim=0)


class OneRowLost(Weighted):
    """Returns one row for all if the first value of one is above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch or 1, 4]."""
        return x[:1] * self.weight if bool((x[:, 0] > 100).any()) else x * self.weight


class Gate(Weighted):
    """Adds the batch's mean if its weights are large. With its initial weights of one, it keeps all rules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x + torch.where(self.weight > 1.5, x.mean(0, keepdim=True).expand_as(x), 0.0)


class Centred(Weighted):
    """Subtracts the batch's mean from each row: correct as long as there is one row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x - self.weight * x.mean(0, keepdim=True)


class OneRow(Weighted):
    """Takes one row at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 4] -> [1, 4]."""
        return (x.reshape(4) * self.weight)[None]


class WritesLarge(Weighted):
    """Writes to its weights, except when there is one row."""

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
