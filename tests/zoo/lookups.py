"""Tables that are indexed by inputs, and other inputs for which not all values are valid."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.cases import Case, Of, ids, refused, taken, x

ROW = x(4)
USER_ITEM = {"user": ("int64", ()), "item": ("int64", ())}


class Recommender(nn.Module):
    """Two towers, of users and of items."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.bias = nn.Embedding(20, 4), nn.Embedding(7, 4), nn.Embedding(7, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (self.users(user) * self.items(item)).sum(-1) + self.bias(item).squeeze(-1)


class WideAndDeep(nn.Module):
    """Numbers, and classes each with a table of its own, crossed in pairs."""

    SIZES = (3, 40, 11)

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in self.SIZES)
        self.deep, self.wide = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)), nn.Linear(4, 1)

    def forward(self, numbers: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        found = [table(classes[:, i]) for i, table in enumerate(self.tables)]
        pairs = torch.stack(found, 1)
        crossed = 0.5 * (pairs.sum(1) ** 2 - (pairs**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.deep(torch.cat([*found, numbers], 1)) + self.wide(numbers) + crossed)


class Characters(nn.Module):
    """Convolutions over the letters of a word."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(30, 4, padding_idx=0), nn.Conv1d(4, 6, 3, padding=1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.conv(self.table(ids).transpose(1, 2))
        return found.masked_fill((ids == 0)[:, None], -9.0).amax(2)


def mean_of_steps(m: Of, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    keep = (torch.arange(x.shape[1]) < n[:, None]).unsqueeze(-1)
    return (x * keep).sum(1) / n[:, None]


def last_step(m: Of, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(x.shape[0]), n - 1]


def dates(rows: int) -> dict[str, Any]:
    return {"ids": torch.arange(3 * rows).view(rows, 3) % 5 + 500}


def sunk(m: Of, ids: torch.Tensor) -> torch.Tensor:
    """Valid numbers lie outside every range that the importer tries."""
    return m.table(ids - 500)


STEPS = x(5, 4) | {"n": ("int64", ())}


def shown(name: str, example: Any, inputs: Any = ROW) -> Case:
    """Returns a case with an example that is refused."""
    return refused(f"example_{name}", lambda: Of(lambda m, x: x * 1), inputs, "bad_example", example=example)


def shown_well(name: str, rows: Any, kind: str = "float32") -> Case:
    return taken(
        f"example_{name}",
        lambda: Of(lambda m, x: x * 1),
        x(4, dtype=kind),
        {"output": (kind, (4,))},
        example={"x": rows},
    )


UNFIT = [
    shown("ragged", {"x": [[1.0, 2.0, 3.0, 4.0], [1.0]]}),
    shown("of_text", {"x": [["a"] * 4] * 2}),
    shown("of_nothing", {"x": None}),
    shown("that_is_a_list", [torch.randn(2, 4)]),
    shown("that_is_a_tensor", torch.randn(2, 4)),
    shown("by_number", {0: torch.randn(2, 4)}),
    shown("by_a_number_too", {0: torch.randn(2, 4), "x": torch.randn(2, 4)}),
    shown("sparse", {"x": torch.eye(4).to_sparse()}),
    shown("complex", {"x": torch.ones(2, 4) * 1j}),
    shown("of_a_number", {"x": 1.0}),
    shown("too_large_an_integer", {"x": [[2**40] * 4, [1] * 4]}, x(4, dtype="int32")),
    shown("below_zero", {"x": [[-1] * 4, [1] * 4]}, x(4, dtype="uint8")),
    shown("above_255", {"x": [[300] * 4, [1] * 4]}, x(4, dtype="uint8")),
    shown("too_large_a_float", {"x": np.array([[1e300] * 4, [1] * 4])}),
    shown("of_nan", {"x": torch.full((2, 4), torch.nan)}),
    shown("of_infinity", {"x": torch.full((2, 4), -torch.inf)}),
]
ARRAY = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
FIT = [
    shown_well("from_behind", ARRAY[::-1]), shown_well("big_endian", ARRAY.astype(">f4")),
    shown_well("of_lists", ARRAY.tolist()), shown_well("in_columns", np.asfortranarray(ARRAY)),
    shown_well("read_only", np.broadcast_to(ARRAY[:, :1], (3, 4))),
    shown_well("of_masks", torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [0.0, 0.0, 0.0, -torch.inf]])),
    shown_well("of_longdouble", ARRAY.astype(np.longdouble)),
    shown_well("of_bytes", np.arange(8).reshape(2, 4), "uint8"), shown_well("of_long", ARRAY > 0, "int64"),
    shown_well("of_integers", np.arange(8).reshape(2, 4)), shown_well("bfloat16", torch.randn(2, 4).bfloat16()),
]  # fmt: skip

CASES = [
    *UNFIT,
    *FIT,
    taken("embedding", lambda: nn.Embedding(50, 3), ids(5), (5, 3), draw={"ids": (0, 50)}),
    taken("embedding_of_three", lambda: nn.Embedding(3, 2), ids(4), (4, 2), draw={"ids": (0, 3)}),
    taken("embedding_of_one", lambda: nn.Sequential(nn.Embedding(1, 2), nn.Flatten()), ids(4), (8,),
          draw={"ids": (0, 1)}),
    taken("embedding_bag", lambda: nn.EmbeddingBag(30, 3, mode="mean"), ids(5), (3,), draw={"ids": (0, 30)}),
    taken("embedding_bag_weighted", lambda: Of(lambda m, i, w: m.bag(i, per_sample_weights=w), bag=nn.EmbeddingBag(30,
          3, mode="sum")), ids(5) | {"w": ("float32", (5,))}, (3,), draw={"ids": (0, 30)}),
    taken("positions", lambda: Of(lambda m, i: m.a(i) + m.b(torch.arange(i.shape[1])), a=nn.Embedding(9, 3),
          b=nn.Embedding(5, 3)), ids(5), (5, 3), draw={"ids": (0, 9)}),
    taken("positions_in_waves", lambda: Of(lambda m, x: x + torch.stack([(torch.arange(5.0) / 7).sin(),
          (torch.arange(5.0) / 7).cos()], -1).repeat(1, 2)), x(5, 4), (5, 4)),
    taken("positions_after_padding", lambda: Of(lambda m, i: m.a(((i != 1).cumsum(1) * (i != 1)).long() + 1),
          a=nn.Embedding(9, 3)), ids(5), (5, 3), draw={"ids": (0, 9)}),
    taken("one_hot", lambda: Of(lambda m, i: F.one_hot(i, 4).float() @ m.w, w=torch.randn(4, 3)), ids(2), (2, 3),
          draw={"ids": (0, 4)}),
    taken("from_one", lambda: Of(lambda m, i: m.a(i - 1), a=nn.Embedding(6, 3)), ids(2), (2, 3), draw={"ids": (1, 7)}),
    taken("recommender", Recommender, USER_ITEM, (), draw={"user": (0, 20), "item": (0, 7)}),
    taken("wide_and_deep", WideAndDeep, {"numbers": ("float32", (4,)), "classes": ("int64", (3,))}, (1,),
          draw={"classes": (0, 3)}),
    taken("characters", Characters, ids(6), (6,), draw={"ids": (0, 30)}),
    taken("buckets", lambda: Of(lambda m, x: m.a(torch.bucketize(x, m.edges)), a=nn.Embedding(4, 2),
          edges=torch.tensor([-1.0, 0.0, 1.0])), ROW, (4, 2)),
    taken("hashed", lambda: Of(lambda m, i: m.a((i * 2654435761) % 8), a=nn.Embedding(8, 2)), ids(3), (3, 2),
          draw={"ids": (0, 10_000)}),
    taken("mean_of_so_many", lambda: Of(mean_of_steps), STEPS, (4,), draw={"n": (1, 6)}),
    taken("the_last_of_so_many", lambda: Of(last_step), STEPS, (4,), draw={"n": (1, 6)}),
    taken("index_per_row", lambda: Of(lambda m, x, i: x.gather(1, i)), ROW | {"i": ("int64", (2,))}, (2,),
          draw={"i": (0, 4)}),
    taken("scattered", lambda: Of(lambda m, i: torch.zeros(i.shape[0], 6).scatter_add_(1, i, torch.ones(i.shape))),
          ids(8), (6,), draw={"ids": (0, 6)}),
    taken("logarithm", lambda: Of(lambda m, x: x.log()), ROW, (4,), draw={"x": (0.1, 9.0)}),
    taken("root", lambda: Of(lambda m, x: m.l(x).sqrt(), l=nn.Linear(4, 4)), ROW, (4,)),
    taken("inverse", lambda: Of(lambda m, x: torch.linalg.inv(x.mT @ x + torch.eye(2))), x(3, 2), (2, 2),
          draw={"x": (-2.0, 2.0)}),
    taken("eigenvalues", lambda: Of(lambda m, x: torch.linalg.eigvalsh(x + x.mT)), x(3, 3), (3,)),
    taken("cholesky", lambda: Of(lambda m, x: torch.linalg.cholesky(x @ x.mT + torch.eye(3))), x(3, 3), (3, 3),
          draw={"x": (-1.0, 1.0)}),
    taken("distribution", lambda: Of(lambda m, x: torch.distributions.Normal(m.l(x), 1.0).log_prob(x), l=nn.Linear(4,
          4)), ROW, (4,)),
    taken("dates_given", lambda: Of(sunk, table=nn.Embedding(5, 2)), ids(3), (3, 2),
          draw={"ids": (500, 505)}, example=dates(2)),
    refused("dates_not_given", lambda: Of(sunk, table=nn.Embedding(5, 2)), ids(3), "forward_failed"),
    refused("dates_that_are_wrong", lambda: Of(sunk, table=nn.Embedding(5, 2)), ids(3), "forward_failed",
            example={"ids": torch.arange(6).view(2, 3)}),
    refused("nothing_but_nan", lambda: Of(lambda m, x: (x - x.mean(0)) * torch.where(x.abs() > 1e3, 1.0, torch.nan)),
            ROW, "forward_failed"),
    refused("example_that_gives_nothing_but_nan", lambda: Of(lambda m, x: x * torch.nan), ROW, "bad_example",
            example={"x": torch.randn(2, 4)}),
    refused("example_of_another_shape", lambda: nn.Linear(4, 3), ROW, "bad_example", example={"x": torch.randn(2, 5)}),
    refused("example_of_another_dtype", lambda: nn.Embedding(4, 3), ids(3), "bad_example",
            example={"ids": torch.rand(2, 3)}),
    refused("example_of_another_name", lambda: nn.Linear(4, 3), ROW, "bad_example", example={"y": torch.randn(2, 4)}),
    refused("example_without_rows", lambda: nn.Linear(4, 3), ROW, "bad_example", example={"x": torch.randn(0, 4)}),
    refused("example_of_equal_rows", lambda: nn.Linear(4, 3), ROW, "bad_example", example={"x": torch.ones(3, 4)}),
    refused("example_of_two_lengths", lambda: nn.Bilinear(4, 4, 2), x(4) | {"y": ("float32", (4,))}, "bad_example",
            example={"x": torch.randn(3, 4), "y": torch.randn(2, 4)}),
]  # fmt: skip
