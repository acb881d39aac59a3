"""Decisions by values, within a graph or outside of it; and heads of detectors, which have many."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

from tests.zoo.cases import Of, refused, taken, x

ROW, PICTURE = x(4), x(3, 8, 8)
ANCHORS, CLASSES = 48, 3


class Detector(nn.Module):
    """Boxes and scores of anchors over two levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.head = nn.Conv2d(4, 7, 1)

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        high = self.stem(x).relu()
        return [self.head(high), self.head(self.down(high))]

    def flat(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.cat([level.flatten(2) for level in self.levels(x)], 2).transpose(1, 2)
        return found[..., :4], found[..., 4:]

    def centres(self) -> torch.Tensor:
        made = []
        for side in (4, 2):
            ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            made.append((torch.stack([xs, ys], -1).view(-1, 2) + 0.5) * (8 / side))
        return torch.cat(made)

    def forward(self, x: torch.Tensor) -> Any:
        offsets, scores = self.flat(x)
        size = offsets[..., 2:].tanh().exp()
        centre = self.centres() + offsets[..., :2].tanh()
        return {"boxes": torch.cat([centre - size, centre + size], -1), "scores": scores.sigmoid()}


class Best(Detector):
    """The best ones of each picture: always the same number."""

    def forward(self, x: torch.Tensor) -> Any:
        offsets, scores = self.flat(x)
        best, which = scores.sigmoid().amax(-1).topk(5, dim=1)
        return {
            "boxes": offsets.gather(1, which.unsqueeze(-1).expand(-1, -1, 4)),
            "scores": best,
            "classes": scores.argmax(-1).gather(1, which),
        }


class Pyramid(Detector):
    """All levels unchanged."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"levels": self.levels(x), "grid": {"boxes": self.flat(x)[0]}}


class AboveAThreshold(Detector):
    """All above a threshold, as many as there are."""

    def forward(self, x: torch.Tensor) -> Any:
        offsets, scores = self.flat(x)
        return offsets[scores.amax(-1) > 0.1]


class Suppressed(Detector):
    """Non-maximum suppression, written out: it loops until nothing is left."""

    def forward(self, x: torch.Tensor) -> Any:
        offsets, scores = self.flat(x)
        boxes, left = offsets[0], scores[0].amax(-1)
        kept = []
        while bool((left > 0).any()):
            best = left.argmax()
            kept.append(boxes[best])
            left = torch.where((boxes - boxes[best]).abs().sum(-1) < 1, -1.0, left)
        return torch.stack(kept)


def peaks(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Where a heat map is larger than all its neighbours."""
    found = m.conv(x).sigmoid()
    return found * (F.max_pool2d(found, 3, 1, 1) == found)


def soft_argmax(m: Of, x: torch.Tensor) -> torch.Tensor:
    chance = m.conv(x).flatten(2).softmax(-1).view(-1, 2, 8, 8)
    steps = torch.linspace(-1, 1, 8)
    return torch.stack([(chance.sum(2) * steps).sum(-1), (chance.sum(3) * steps).sum(-1)], -1)


def decided(m: Of, x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


def decided_by_cond(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Decides for the whole batch, which mixes rows."""
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def decided_by_cond_if_large(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Decides by a limit that no tried value reaches."""
    return torch.cond(x.max() > 1e9, torch.sin, torch.cos, (x,))


def decided_by_a_weight(m: Of, x: torch.Tensor) -> torch.Tensor:
    return torch.cond(m.switch.sum() > 0, torch.sin, torch.cos, (x,))


def decided_within_a_decision(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Decides for the whole batch, inside a decision by a weight."""
    return torch.cond(
        m.switch.sum() > 0, lambda x: torch.cond(x.max() > 1e6, torch.sin, torch.cos, (x,)), torch.cos, (x,)
    )


def twice_by_weights(m: Of, x: torch.Tensor) -> torch.Tensor:
    def inner(x: torch.Tensor, switch: torch.Tensor) -> torch.Tensor:
        return torch.cond(switch.max() > 1e6, torch.sin, torch.cos, (x,))

    return torch.cond(m.switch.sum() > 0, inner, lambda x, switch: x.cos(), (x, m.switch))


def layers_by_a_weight(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Branches that use layers of the enclosing function."""
    return torch.cond(m.switch.sum() > 0, lambda x: m.first(x), lambda x: m.second(x), (x,))


def while_any_is_large(m: Of, x: torch.Tensor) -> torch.Tensor:
    return torch.while_loop(lambda y: y.abs().max() > 1e6, lambda y: (y * 0.5,), (x,))[0]


def counted(m: Of, x: torch.Tensor) -> torch.Tensor:
    def body(i: torch.Tensor, y: torch.Tensor) -> Any:
        return i + 1, (y @ m.w).tanh()

    return torch.while_loop(lambda i, y: i < 3, body, (x.new_zeros((), dtype=torch.int64), x))[1]


def row_by_row(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Loops once per row: a row's result does not depend on the number of rows."""
    places = torch.arange(x.shape[0]).view(-1, 1)

    def body(i: torch.Tensor, y: torch.Tensor) -> Any:
        return i + 1, torch.where(places == i, y.tanh(), y)

    return torch.while_loop(lambda i, y: i < y.shape[0], body, (torch.zeros((), dtype=torch.int64), x))[1]


def decided_by_the_number_of_rows(m: Of, x: torch.Tensor) -> torch.Tensor:
    rows = torch.ones_like(x[:, 0]).sum()
    return torch.cond(rows > 6, torch.sin, torch.cos, (x,))


def by_how_many_are_large(m: Of, x: torch.Tensor) -> torch.Tensor:
    return torch.cond((x > 1e6).nonzero().shape[0] > 1, torch.sin, torch.cos, (x,))


def counted_by_values(m: Of, x: torch.Tensor) -> torch.Tensor:
    """From the second round on, the counter depends on the contents of the rows."""

    def body(i: torch.Tensor, n: torch.Tensor, y: torch.Tensor) -> Any:
        return i + n, n + (y.max() > 1e6), y * 0.5

    one = torch.ones((), dtype=torch.int64)
    return torch.while_loop(lambda i, n, y: i < 3, body, (one - 1, one.clone(), x))[2]


def decided_within_a_count(m: Of, x: torch.Tensor) -> torch.Tensor:
    def body(i: torch.Tensor, y: torch.Tensor) -> Any:
        return i + 1, torch.cond(y.max() > 1e6, torch.sin, torch.cos, (y,))

    return torch.while_loop(lambda i, y: i < 3, body, (torch.zeros((), dtype=torch.int64), x))[1]


def decided_by_what_was_written(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Writes into a view: the decision sees it in the viewed tensor and in other views of that."""
    kept = x.new_zeros(2)
    first, other = kept[:1], kept.view(2, 1)
    first.copy_(x.amax().expand(1))
    return torch.cond(other.sum() > 1e6, torch.sin, torch.cos, (x,))


def decided_in_a_scan(m: Of, x: torch.Tensor) -> torch.Tensor:
    def step(held: torch.Tensor, one: torch.Tensor) -> Any:
        return torch.cond(one.max() > 1e6, torch.sin, torch.cos, (held,)), held * 2

    return scan(step, x, torch.stack([x, x * 2, x * 3]))[0]


def until_it_settles(m: Of, x: torch.Tensor) -> torch.Tensor:
    for _ in range(20):
        if bool((x.abs() < 1).all()):
            break
        x = x * 0.5
    return x


def each_until_it_settles(m: Of, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = torch.where(x.abs().amax(1, keepdim=True) < 1, x, x * 0.5)
    return x


def exits_early(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Rows that are sure take the output of the first head."""
    first = m.first(x)
    sure = first.softmax(-1).amax(-1, keepdim=True) > 0.6
    return torch.where(sure, first, m.second(x))


def beam(m: Of, x: torch.Tensor) -> Any:
    """Beam search with two beams, separate for each row."""
    scores = x.log_softmax(-1)
    best, token = scores.topk(2, -1)
    both = (best.unsqueeze(-1) + scores.unsqueeze(1)).flatten(1)
    value, which = both.topk(2, -1)
    return value, token.gather(1, which // 4), which % 4


def guarded(m: Of, x: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(x).all():
        raise ValueError("no number")
    return x * 2


CASES = [
    taken("detector", Detector, PICTURE, {"boxes": ("float32", (20, 4)), "scores": ("float32", (20, CLASSES))}),
    taken("detector_best", Best, PICTURE,
          {"boxes": ("float32", (5, 4)), "scores": ("float32", (5,)), "classes": ("int64", (5,))}),
    taken("detector_pyramid", Pyramid, PICTURE, {"levels.0": ("float32", (7, 4, 4)), "levels.1": ("float32", (7, 2, 2)),
          "grid.boxes": ("float32", (20, 4))}),
    taken("peaks", lambda: Of(peaks, conv=nn.Conv2d(3, 2, 1)), PICTURE, (2, 8, 8)),
    taken("soft_argmax", lambda: Of(soft_argmax, conv=nn.Conv2d(3, 2, 1)), PICTURE, (2, 2)),
    taken("topk", lambda: Of(lambda m, x: x.topk(2, largest=False)), ROW,
          {"0": ("float32", (2,)), "1": ("int64", (2,))}),
    taken("where", lambda: Of(lambda m, x: torch.where(x > 0, x, x.exp() - 1)), ROW, (4,)),
    taken("each_until_it_settles", lambda: Of(each_until_it_settles), ROW, (4,)),
    taken("exits_early", lambda: Of(exits_early, first=nn.Linear(4, 3), second=nn.Linear(4, 3)), ROW, (3,)),
    taken("beam", lambda: Of(beam), ROW,
          {"0": ("float32", (2,)), "1": ("int64", (2,)), "2": ("int64", (2,))}),
    taken("cond_of_a_weight", lambda: Of(decided_by_a_weight, switch=torch.ones(1)), ROW, (4,)),
    taken("cond_within_cond_of_a_weight", lambda: Of(twice_by_weights, switch=torch.ones(1)), ROW, (4,)),
    taken("layers_by_a_weight", lambda: Of(layers_by_a_weight, switch=torch.ones(1), first=nn.Linear(4, 3),
          second=nn.Linear(4, 3)), ROW, (3,)),
    taken("a_counted_loop", lambda: Of(counted, w=torch.randn(4, 4)), ROW, (4,)),
    taken("a_round_for_each_row", lambda: Of(row_by_row), ROW, (4,)),
    taken("by_numpy", lambda: Of(lambda m, x: torch.from_numpy(np.tanh(x.numpy()) * 2)), ROW, (4,)),
    taken("median_and_quantile", lambda: Of(lambda m, x: (x.median(1).values, x.quantile(0.5, 1))), ROW,
          {"0": ("float32", ()), "1": ("float32", ())}),
    refused("detector_above_a_threshold", AboveAThreshold, PICTURE, "rows_changed"),
    refused("detector_suppressed", Suppressed, PICTURE, "rows_changed"),
    refused("if", lambda: Of(decided), ROW, "data_dependent"),
    refused("cond_of_all_rows", lambda: Of(decided_by_cond), ROW, "rows_mixed"),
    refused("cond_that_never_is", lambda: Of(decided_by_cond_if_large), ROW, "rows_mixed"),
    *(
        refused(function.__name__, partial(Of, function, switch=torch.ones(1)), ROW, "rows_mixed")
        for function in (
            decided_within_a_decision, while_any_is_large, counted_by_values, decided_within_a_count,
            decided_by_the_number_of_rows, by_how_many_are_large, decided_by_what_was_written, decided_in_a_scan,
        )
    ),
    refused("until_it_settles", lambda: Of(until_it_settles), ROW, "data_dependent"),
    refused("guarded_by_values", lambda: Of(guarded), ROW, "data_dependent"),
    refused("a_number_of_python", lambda: Of(lambda m, x: x * float(x[0, 0])), ROW, "data_dependent"),
    refused("by_text", lambda: Of(lambda m, x: x * float(str(x.sum().item())[:3])), ROW, "rows_mixed"),
]  # fmt: skip
