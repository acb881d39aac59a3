"""Outputs have one row for each row of the input, whatever the number and the values are."""

from typing import Any

import numpy as np
import torch

from tests.zoo.cases import Case, Of, refused, taken, x

ROW = x(4)


def changes(name: str, function: Any, code: str = "rows_changed", inputs: Any = ROW, **options: Any) -> Case:
    return refused(name, lambda: Of(function), inputs, code, **options)


def halved(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Draws random numbers for half of the rows, which nothing reads in evaluation."""
    chosen = np.random.randint(0, 3, size=(int(x.shape[0] * 0.5),))
    return x * 3 if len(chosen) >= 0 else x


def same_in_chunks(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Computes large batches in pieces, which changes no answer."""
    return torch.cat([part * 2 for part in x.split(4)]) if x.shape[0] > 4 else x * 2


def in_chunks(m: Of, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part * 2 for part in x.chunk(2)])


def rarely_twice(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Returns a row twice for a value that no tried row has."""
    return x.repeat_interleave((x[:, 0] > 1e6).long() + 1, 0)


CASES = [
    taken("a_weight_of_no_values", lambda: Of(lambda m, x: x + m.w.sum() + m.v, w=torch.zeros(0), v=torch.ones(4)),
          x(4), (4,)),
    taken("weights_of_no_values_alone", lambda: Of(lambda m, x: torch.cat([x, m.w.expand(x.shape[0], 0)], 1),
          w=torch.zeros(1, 0)), x(4), (4,)),
    changes("a_row_more", lambda m, x: torch.cat([x, x[:1]])),
    changes("a_row_less", lambda m, x: x[1:]),
    changes("every_second_row", lambda m, x: x[::2]),
    changes("rows_that_score", lambda m, x: x[x[:, 0] > 0]),
    changes("rows_that_score_beside_all", lambda m, x: (x, x[x[:, 0] > 0])),
    changes("rows_that_never_score", lambda m, x: x[x[:, 0] < 1e6]),
    changes("nonzero", lambda m, x: x.nonzero()),
    changes("indices_where", lambda m, x: torch.where(x > 0)[0]),
    changes("masked_select", lambda m, x: torch.masked_select(x, x > 0)),
    changes("unique", lambda m, x: torch.unique(x)),
    changes("twice_each", lambda m, x: x.repeat_interleave(2, 0)),
    changes("rarely_twice", rarely_twice),
    changes("pairs_across", lambda m, x: x.reshape(-1, 2)),
    changes("flat", lambda m, x: x.flatten()),
    changes("rows_one_by_one", lambda m, x: x.unbind(0)),
    changes("two_rows_for_any", lambda m, x: x.view(2, -1)),
    changes("rows_second", lambda m, x: x.T),
    changes("sum_of_rows", lambda m, x: x.sum(0)),
    changes("always_three_rows", lambda m, x: x.sum(0).expand(3, 4)),
    changes("a_weight", lambda m, x: (x, torch.arange(4.0))),
    changes("squeezed", lambda m, x: x.sum(1, keepdim=True).squeeze()),
    changes("unsqueezed", lambda m, x: x[None]),
    changes("as_long_as_the_largest", lambda m, x: x[:, : int(x.max()) + 1], "data_dependent", x(4, dtype="int32")),
    changes("two_rows_alone", lambda m, x: x + torch.ones(2, 4), "forward_failed"),
    changes("another_way_when_large", lambda m, x: x * 2 if x.shape[0] > 4 else x, "rows_mixed"),
    changes("in_chunks_when_large", same_in_chunks, "batch_fixed"),
    changes("in_chunks", in_chunks, "batch_fixed"),
    changes("row_by_row", lambda m, x: torch.stack([row * 2 for row in x]), "batch_fixed"),
    changes("a_dimension_is_the_batch", lambda m, x: x.unsqueeze(1).expand(-1, x.shape[0], -1), "rows_mixed"),
    changes("columns_that_score", lambda m, x: x[:, x[0] > 0], "rows_mixed"),
    taken("made_for_a_number", lambda: Of(lambda m, x: x.view(int(x.shape[0]), 2, 2)), ROW, (2, 2)),
    taken("a_number_for_training_alone", lambda: Of(halved), ROW, (4,)),
    taken("squeezed_where_it_is_one", lambda: Of(lambda m, x: x.sum(1, keepdim=True).squeeze(1)), ROW, ()),
    taken("folded_away_and_back", lambda: Of(lambda m, x: x.view(x.size(0) * 2, 2).relu().view(-1, 4)), ROW, (4,)),
    taken("flat_and_back", lambda: Of(lambda m, x: x.flatten().sin().view_as(x)), ROW, (4,)),
    taken("unflattened", lambda: Of(lambda m, x: x.unflatten(1, (2, 2))), ROW, (2, 2)),
    taken("masked_within", lambda: Of(lambda m, x: x.masked_fill(x < 0, 0.0)), ROW, (4,)),
    taken("nonzero_put_back", lambda: Of(lambda m, x: torch.zeros_like(x).masked_scatter(x > 0, x[x > 0] * 2)), ROW,
          (4,)),
    taken("rows_of_zeros", lambda: Of(lambda m, x: torch.zeros(x.shape[0], 3) + x[:, :1]), ROW, (3,)),
    taken("two_at_most", lambda: Of(lambda m, x: x * 3), ROW, (4,), batch_max=2),
]  # fmt: skip
