"""State from call to call, and random numbers, are refused; what only looks like them is accepted."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo import keeping
from tests.zoo.cases import Of, ids, refused, taken, x

ROW = x(4)


class Counter(nn.Module):
    """Adds the number of its calls."""

    def __init__(self, how: str, used: bool = True) -> None:
        super().__init__()
        self.how, self.used = how, used
        if how in ("buffer", "rebound", "behind"):
            self.register_buffer("n", torch.zeros(1))
        elif how == "parameter":
            self.n: Any = nn.Parameter(torch.zeros(1))
        else:
            self.n = torch.zeros(1) if how in ("tensor", "tensor rebound") else 0
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how in ("buffer", "tensor", "parameter"):
            self.n += 1
        elif self.how == "behind":
            self.n.data.add_(1)
        elif self.how == "list":
            self.seen.append(1)
            return x * len(self.seen)
        else:
            self.n = self.n + 1
        return x + self.n if self.used else x * 2


class Average(nn.Module):
    """Follows a running average of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean


class Cache(nn.Module):
    """Keeps what it computed from its weights alone, which changes no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(4, 4)), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.weight.softmax(0)
        return x @ self.kept


class Looks(nn.Module):
    """Keeps what it saw, for debugging."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(4, 4), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.linear(x)
        return self.last.relu()


class First(nn.Module):
    """Keeps part of the first rows that it sees, and uses it from then on."""

    kept: Any = None

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what, self.kept = what, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.what(x)
        return x - self.kept


class Initialised(nn.Module):
    """As activation normalisation: its weights are computed from the first rows."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.ready = nn.Parameter(torch.zeros(4)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.shift.data.copy_(x.mean(0))
            self.ready = True
        return x - self.shift


class InItsClass(nn.Module):
    """Keeps state in its class, where all instances find it."""

    kept: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if InItsClass.kept is None:
            InItsClass.kept = x.mean()
        return x - InItsClass.kept


def by_shape(known: dict[Any, torch.Tensor]) -> Any:
    """Returns a function that subtracts what was computed from the first rows of the same shape."""

    def centred(m: Of, x: torch.Tensor) -> torch.Tensor:
        if x.shape not in known:
            known[x.shape] = x.mean()
        return x - known[x.shape]

    return centred


KNOWN: dict[str, Any] = {}
known: Any = None


def in_a_global_dict(m: Of, x: torch.Tensor) -> torch.Tensor:
    if "mean" not in KNOWN:
        KNOWN["mean"] = x.mean()
    return x - KNOWN["mean"]


def in_a_global_name(m: Of, x: torch.Tensor) -> torch.Tensor:
    global known
    if known is None:
        known = x.mean()
    return x - known


MEAN = torch.zeros(4)
NOTES = type("Notes", (), {"mean": None})()


def in_a_global_tensor(m: Of, x: torch.Tensor) -> torch.Tensor:
    if not MEAN.any():
        MEAN.copy_(x.mean(0))
    return x - MEAN


def in_a_global_object(m: Of, x: torch.Tensor) -> torch.Tensor:
    if NOTES.mean is None:
        NOTES.mean = x.mean()
    return x - NOTES.mean


def in_another_module(m: Of, x: torch.Tensor) -> torch.Tensor:
    return keeping.centred(x)


def largest_id(m: Of, ids: torch.Tensor) -> torch.Tensor:
    if m.kept is None:
        m.kept = ids.max()
    return ids / m.kept


def table_in_a_global_dict(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Keeps a table that depends on the shape of a row alone."""
    if "table" not in KNOWN:
        KNOWN["table"] = torch.arange(x.shape[1]).sin()
    return x + KNOWN["table"]


class Table(nn.Module):
    """Makes a table of constants on its first run."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "buffer":
            self.register_buffer("table", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, "table", None) is None:
            table = torch.arange(x.shape[1]).sin()
            self.register_buffer("table", table) if self.how == "new buffer" else setattr(self, "table", table)
        return x + self.table


class FilledLater(nn.Module):
    """Fills its table of zeros on its first run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(4))
        self.ready = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.table.copy_(torch.arange(4).sin())
            self.ready = True
        return x + self.table


def run_before() -> nn.Module:
    """Returns a module that was run before it is written: what it keeps is part of it."""
    made = First(lambda x: x.abs().max().item())
    made(torch.randn(8, 4))
    return made


def add_to_input(m: Of, x: torch.Tensor) -> torch.Tensor:
    x += 1
    x[:, 0] = 0
    return F.relu(x, inplace=True)


def input_and_later(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first output is the input itself, and is changed after it was made."""
    y = x * 2
    x.mul_(3)
    return x, y


def embedding_with_limit() -> nn.Module:
    """Returns an embedding that shortens rows of its table in place if they are too long."""
    table = nn.Embedding(5, 4, max_norm=0.1)
    return nn.Sequential(table)


def seeded(m: Of, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return x + torch.rand_like(x)


def drop(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.2, training=True)


def drawn(name: str, function: Any, inputs: Any = ROW) -> Any:
    return refused(name, lambda: Of(lambda m, x: function(x)), inputs, "random")


CASES = [
    *(refused(f"counter_in_a_{how.replace(' ', '_')}", lambda how=how: Counter(how), ROW, "state_changed")
      for how in ("buffer", "rebound", "behind", "parameter", "tensor", "tensor rebound", "number", "list")),
    refused("counter_that_nobody_reads", lambda: Counter("buffer", used=False), ROW, "state_changed"),
    refused("counter_in_a_tensor_that_nobody_reads", lambda: Counter("tensor", used=False), ROW, "state_changed"),
    taken("counter_in_a_number_that_nobody_reads", lambda: Counter("number", used=False), ROW, (4,)),
    *(refused(f"first_rows_{name}", lambda what=what: First(what), ROW, "state_changed") for name, what in (
        ("number", lambda x: x.abs().max().item()), ("mean", lambda x: x.mean()), ("frame", lambda x: x[:1].clone()))),
    refused("first_rows_by_shape", lambda: Of(by_shape({})), ROW, "state_changed"),
    refused("first_rows_by_shape_in_a_dict", lambda: Of(lambda m, x: by_shape(m.known)(m, x), known={}), ROW,
            "state_changed"),
    refused("first_run_at_random", lambda: First(lambda x: torch.randn(4)), ROW, "state_changed"),
    refused("first_rows_in_weights", Initialised, ROW, "state_changed"),
    refused("first_rows_in_a_class", InItsClass, ROW, "state_changed"),
    refused("first_rows_in_a_global_dict", lambda: Of(in_a_global_dict), ROW, "state_changed"),
    refused("first_rows_in_a_global_name", lambda: Of(in_a_global_name), ROW, "state_changed"),
    refused("first_rows_in_a_global_tensor", lambda: Of(in_a_global_tensor), ROW, "state_changed"),
    refused("first_rows_in_a_global_object", lambda: Of(in_a_global_object), ROW, "state_changed"),
    refused("first_rows_in_another_module", lambda: Of(in_another_module), ROW, "state_changed"),
    refused("first_rows_of_integers", lambda: Of(largest_id, kept=None), ids(3), "state_changed"),
    refused("first_rows_of_an_example", lambda: First(lambda x: x.mean()), ROW, "state_changed",
            example={"x": [[1.0, 2, 3, 4], [5, 6, 7, 8]]}),
    taken("first_rows_before_it_is_written", run_before, ROW, (4,)),
    taken("table_in_a_global_dict", lambda: Of(table_in_a_global_dict), ROW, (4,)),
    *(taken(f"table_in_a_{how.replace(' ', '_')}", lambda how=how: Table(how), ROW, (4,))
      for how in ("attribute", "buffer", "new buffer")),
    taken("table_that_is_filled_later", FilledLater, ROW, (4,)),
    refused("running_mean", Average, ROW, "state_changed"),
    refused("embedding_with_limit", embedding_with_limit, ids(3), "state_changed"),
    taken("keeps_what_it_makes_of_weights", Cache, ROW, (4,)),
    taken("keeps_what_it_saw", Looks, ROW, (4,)),
    taken("changes_its_input", lambda: Of(add_to_input), ROW, (4,)),
    taken("gives_its_input_and_changes_it", lambda: Of(input_and_later), ROW,
          {"0": ("float32", (4,)), "1": ("float32", (4,))}),
    taken("writes_into_what_it_made", lambda: Of(lambda m, x: x.clone().index_fill_(1, torch.tensor([1]), 7.0)), ROW,
          (4,)),
    taken("copies_into_zeros", lambda: Of(lambda m, x: x.new_zeros(x.shape[0], 6).index_add_(1, torch.arange(4), x)),
          ROW, (6,)),
    drawn("dropout_in_evaluation", drop),
    drawn("dropout_of_channels", lambda x: F.dropout2d(x, 0.1, training=True), x(2, 3, 3)),
    drawn("dropout_of_features", lambda x: F.feature_alpha_dropout(x, 0.1, training=True), x(2, 3)),
    drawn("dropout_of_almost_nothing", lambda x: F.dropout(x, 1e-6, training=True)),
    drawn("noise", lambda x: x + 0.1 * torch.rand_like(x)),
    drawn("noise_of_its_own", lambda x: x + torch.empty_like(x).normal_()),
    drawn("noise_of_integers", lambda x: x + torch.randint(0, 5, (x.shape[0], 1))),
    drawn("random_slopes", lambda x: F.rrelu(-x.abs(), training=True)),
    drawn("sampled_classes", lambda x: torch.multinomial(x.softmax(-1), 1)),
    drawn("shuffled", lambda x: x[:, torch.randperm(4)]),
    drawn("sampled_by_gumbel", lambda x: F.gumbel_softmax(x)),
    drawn("stochastic_depth", lambda x: x * torch.bernoulli(torch.full((x.shape[0], 1), 0.99))),
    drawn("noise_from_numpy", lambda x: x * float(np.random.rand())),
    drawn("noise_from_python", lambda x: x * random.random()),
    refused("noise_that_is_seeded", lambda: Of(seeded), ROW, "random"),
    taken("dropout_that_is_off", lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.AlphaDropout(), nn.RReLU()),
          ROW, (4,)),
    taken("dropout_of_nothing", lambda: Of(lambda m, x: F.dropout(x, 0.0, training=True) + 1), ROW, (4,)),
    taken("noise_as_an_input", lambda: Of(lambda m, x, noise: x + noise), ROW | {"noise": ("float32", (4,))}, (4,)),
]  # fmt: skip
