"""What works across the batch is refused, because an answer would depend on other clients' rows.

What only looks like it is accepted.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.cases import Case, Of, ids, refused, taken, x

ROW = x(4)


def mixes(name: str, function: Any, inputs: Any = ROW, **parts: Any) -> Case:
    return refused(name, lambda: Of(function, **parts), inputs, "rows_mixed")


def keeps(name: str, function: Any, outputs: Any = (4,), inputs: Any = ROW) -> Case:
    return taken(name, lambda: Of(function), inputs, outputs)


def nearest(m: Of, x: torch.Tensor) -> torch.Tensor:
    """For each row, the row that is most like it: itself, when alone."""
    distance = torch.cdist(x, x) + torch.eye(x.shape[0]) * 1e9
    return x[distance.argmin(1)]


def normalised(m: Of, x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-3)


def experts(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Each expert takes as many rows as it has room for, in their order."""
    wanted = (x @ m.gate).softmax(-1)
    chosen = F.one_hot(wanted.argmax(-1), 2)
    room = (chosen.cumsum(0) <= 2) & (chosen > 0)
    return x * room.any(-1, keepdim=True)


def routed(m: Of, x: torch.Tensor) -> torch.Tensor:
    """All experts compute all rows; each row takes the result of its expert."""
    each = torch.einsum("bi,eio->beo", x, m.experts)
    return each.gather(1, (x @ m.gate).argmax(-1).view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)


def padded(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Fills the batch up to 20 rows and cuts it again, which changes no answer."""
    whole = torch.cat([x, x.new_zeros(20 - x.shape[0], 4)])
    return (whole * 2)[: x.shape[0]]


def guided(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Computes every row with and without a condition in one batch, then combines both."""
    without, given = m.l(torch.cat([x * 0, x])).chunk(2)
    return without + 7.5 * (given - without)


def siamese(m: Of, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second = m.l(torch.cat([x, y])).split(x.shape[0])
    return F.cosine_similarity(first, second)


def halves(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Splits the batch into its first and second half."""
    first, second = x.repeat(1, 2).view(-1, 4).chunk(2)
    return first + second


CASES = [
    mixes("by_the_largest_of_all", lambda m, x: x / x.max()),
    mixes("sorted", lambda m, x: x.sort(0).values),
    mixes("in_order_of_score", lambda m, x: x[torch.argsort(x[:, 0])]),
    mixes("less_the_mean_of_all", lambda m, x: x - x.mean(0)),
    mixes("a_little_of_the_mean_of_all", lambda m, x: x + 0.003 * x.mean(0)),
    mixes("a_billionth_of_the_mean_of_all", lambda m, x: x + 1e-9 * x.mean(0)),
    mixes("sum_of_all_times_nothing", lambda m, x: x + x.sum() * 0.0),
    mixes("softmax_over_rows", lambda m, x: x.softmax(0)),
    mixes("running_sum", lambda m, x: x.cumsum(0)),
    mixes("flipped", lambda m, x: x.flip(0)),
    mixes("rolled", lambda m, x: x.roll(1, 0)),
    mixes("the_first_row_for_all", lambda m, x: x[0].expand_as(x)),
    mixes("the_first_row_added", lambda m, x: x + x[:1]),
    mixes("normalised_by_all", normalised),
    mixes("by_the_norm_of_all", lambda m, x: x / x.norm()),
    mixes("einsum_over_rows", lambda m, x: torch.einsum("bi,bj,bj->bi", x, x, x) + torch.einsum("bi,cj->bi", x, x)),
    mixes("gram_matrix", lambda m, x: x @ x.T),
    mixes("gram_matrix_multiplied", lambda m, x: x @ x.T @ x),
    mixes("place_in_the_batch", lambda m, x: x + torch.arange(x.shape[0]).view(-1, 1)),
    mixes("by_the_number_of_rows", lambda m, x: x / x.shape[0]),
    mixes("next_row_by_convolution", lambda m, x: F.conv1d(x.T.unsqueeze(0), m.w, padding=1, groups=4)[0].T,
          w=torch.rand(4, 1, 3)),
    mixes("mean_loss", lambda m, x: (x, x.square().mean())),
    mixes("mean_loss_alone", lambda m, x: x.square().mean()),
    mixes("nearest_row", nearest),
    mixes("experts_with_room", experts, gate=torch.randn(4, 2)),
    mixes("cut_across", lambda m, x: x.view(-1)[: x.shape[0] * 2].view(-1, 2)),
    mixes("reshaped_across", lambda m, x: x.T.reshape(-1, 4)),
    mixes("integers_by_the_largest", lambda m, i: i.max() - i, ids(3)),
    mixes("embedding_less_the_mean_of_all", lambda m, i: m.t(i) - m.t(i).mean(0), ids(2), t=nn.Embedding(50, 3)),
    mixes("parity_of_all", lambda m, i: torch.where(i.sum() % 2 == 0, i, -i), ids(3)),
    mixes("the_sign_of_the_sum_of_all", lambda m, x: x * x.detach().sum().nan_to_num().sign()),
    mixes("flags_of_all", lambda m, x: x.any(0).expand_as(x), x(3, dtype="bool")),
    mixes("quantised_by_all", lambda m, x: torch.fake_quantize_per_tensor_affine(x, x.abs().max() / 127,
          torch.zeros(1, dtype=torch.int32), -128, 127)),
    mixes("negative_if_any_is_large", lambda m, x: torch.where(x.max() > 1e4, -x, x)),
    mixes("scaled_if_any_is_large", lambda m, x: torch.where(x.norm() > 1e4, x / x.norm(), x)),
    mixes("pictures_of_bytes_or_not", lambda m, x: torch.where(x.max() > 100, x / 255, x)),
    mixes("negative_if_any_is_infinite", lambda m, x: torch.where(x.isinf().any(), -x, x)),
    mixes("doubled_if_all_are_set", lambda m, x, k: torch.where(k.all(), x * 2, x + k),
          {"x": ("float32", (16,)), "k": ("bool", (16,))}),
    mixes("as_many_as_are_like_it", lambda m, i: i + (i[:, None] == i[None]).all(-1).sum(1, keepdim=True), ids(3)),
    mixes("one_value_of_thousands", lambda m, i: torch.cat([i[:, :1] + i.sum(), i[:, 1:]], 1), ids(2000)),
    mixes("bits_and_the_number_of_rows", lambda m, x: x.view(torch.int32) + x.shape[0]),
    mixes("the_last_place", lambda m, x: x + ((torch.arange(x.shape[0]) == x.shape[0] - 1)
          & (torch.arange(x.shape[0]) > 3)).view(-1, 1)),
    mixes("no_numbers_but_where_all_are_the_same", lambda m, i: (1.5 - i.clamp(max=2)).log() + i.float().mean(0),
          ids(3)),
    refused("flags_of_two", lambda: Of(lambda m, i: i | i.any(0)), x(2, dtype="bool"), "rows_mixed", batch_max=2),
    refused("two_rows_by_their_mean", lambda: Of(lambda m, i: i.float() - i.float().mean(0)), ids(3), "rows_mixed",
            batch_max=2, example={"ids": torch.tensor([[1, 2, 3], [3, 1, 1]])}),
    keeps("one_row_mixes_nothing_for_one", lambda m, x: x - x.mean(-1, keepdim=True)),
    taken("all_of_them_one_at_a_time", lambda: Of(lambda m, x: x / x.max()), ROW, (4,), batch_max=1),
    keeps("sorted_within", lambda m, x: x.sort(-1), {"0": ("float32", (4,)), "1": ("int64", (4,))}),
    keeps("running_sum_within", lambda m, x: x.cumsum(1)),
    keeps("there_and_back", lambda m, x: (x.flip(0) * 2).flip(0)),
    keeps("turned_and_back", lambda m, x: (x.T.softmax(0)).T),
    keeps("sum_of_all_that_cancels", lambda m, x: x + (x.sum() * 0.0).nan_to_num()),
    keeps("filled_up_and_cut", padded),
    taken("guided", lambda: Of(guided, l=nn.Linear(4, 3)), ROW, (3,)),
    taken("siamese", lambda: Of(siamese, l=nn.Linear(4, 3)), ROW | {"y": ("float32", (4,))}, ()),
    mixes("halves_of_all", halves),
    keeps("weights_of_a_row", lambda m, x: torch.einsum("bi,bj->bij", x, x), (4, 4)),
    taken("every_expert_for_each_row", lambda: Of(routed, experts=torch.randn(2, 4, 3), gate=torch.randn(4, 2)), ROW,
          (3,)),
    taken("rows_as_one_long_one", lambda: Of(lambda m, x: m.l(x.reshape(-1, 2)).view(x.shape[0], -1), l=nn.Linear(2,
          3)), x(3, 4), (18,)),
]  # fmt: skip
