"""Outputs with a leading dimension of their own, or with fewer elements than there is room: told apart by row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.zoo.cases import Of

ROW = {"x": ("float32", (6,))}
OWNED, COUNTED = {"boxes": "owner"}, {"boxes": "count"}
Found = dict[str, torch.Tensor]


def found(x: torch.Tensor) -> Found:
    """Returns what is positive in each row, as boxes of two numbers, and the row that each is of."""
    at = (x > 0).nonzero()
    value = x[at[:, 0], at[:, 1]]
    return {"boxes": torch.stack([value, value * 2], 1), "owner": at[:, 0]}


def largest(x: torch.Tensor) -> Found:
    """Returns the positive values of each row, largest first, and their number."""
    return {"boxes": x.sort(1, descending=True)[0], "count": (x > 0).sum(1)}


def with_scores(x: torch.Tensor) -> Found:
    one = found(x)
    return {"scores": one["boxes"].sum(1), **one, "mean": x.mean(1)}


def in_reverse(x: torch.Tensor) -> Found:
    return {name: tensor.flip(0) for name, tensor in found(x).items()}


def written(folder: Path, function: Callable[[torch.Tensor], Found], rows: dict[str, str], **options: Any) -> Package:
    module: nn.Module = Of(lambda m, x: function(x))
    return write_package(folder, "m", "1", module, **{"inputs": ROW, "rows": rows, "batch_max": 5} | options)


def test_boxes_are_told_apart_by_the_row_that_each_belongs_to(tmp_path: Path) -> None:
    package = written(tmp_path, found, OWNED)
    assert [(t.name, t.shape, t.owner, t.count) for t in package.spec.outputs] == [
        ("boxes", (-1, 2), "owner", ""), ("owner", (-1,), "", ""),
    ]  # fmt: skip
    assert 'owner = "owner"' in package.manifest.read_text()


def test_boxes_are_told_apart_by_how_many_each_row_has(tmp_path: Path) -> None:
    package = written(tmp_path, largest, COUNTED)
    assert [(t.name, t.shape, t.owner, t.count) for t in package.spec.outputs] == [
        ("boxes", (-1, 6), "", "count"), ("count", (-1,), "", ""),
    ]  # fmt: skip


def test_several_outputs_may_have_one_owner_beside_others_with_a_row_for_each(tmp_path: Path) -> None:
    package = written(tmp_path, with_scores, {"boxes": "owner", "scores": "owner"})
    assert [(t.name, t.shape, t.owner) for t in package.spec.outputs] == [
        ("scores", (-1,), "owner"), ("boxes", (-1, 2), "owner"), ("owner", (-1,), ""), ("mean", (-1,), ""),
    ]  # fmt: skip


def test_owners_need_no_order_among_rows(tmp_path: Path) -> None:
    assert written(tmp_path, in_reverse, OWNED).spec.outputs[0].owner == "owner"


def test_what_is_detected_may_have_open_dimensions(tmp_path: Path) -> None:
    package = written(tmp_path, found, OWNED, inputs={"x": ("float32", ("seq",))}, dims={"seq": (1, 30)})
    assert package.spec.outputs[0].owner == "owner"


@pytest.mark.parametrize(
    ("function", "rows", "code", "told"),
    [
        (lambda x: found(x) | {"owner": found(x)["owner"].int()}, OWNED, "bad_outputs", "must be int64 [n]"),
        (lambda x: found(x) | {"owner": found(x)["owner"] + 1}, OWNED, "bad_outputs", "numbers the rows"),
        (lambda x: found(x) | {"owner": found(x)["owner"][:-1]}, OWNED, "bad_outputs", "names the rows of"),
        (lambda x: largest(x) | {"count": (x > 0).sum(1) + 6}, COUNTED, "bad_outputs", "has room for 6"),
        (lambda x: largest(x) | {"count": -(x > 0).sum(1) - 1}, COUNTED, "bad_outputs", "has room for 6"),
        (lambda x: found(x), {"boxes": "who"}, "bad_argument", "rows names who; the outputs are boxes, owner"),
        (lambda x: found(x), {"boxes": "boxes"}, "bad_outputs", "tells the rows of others"),
        (lambda x: found(x), {}, "rows_changed", "one row for each"),
        (lambda x: found(x - x.mean()), OWNED, "rows_mixed", "depends on the other rows"),
        (lambda x: found(x) | {"boxes": found(x)["boxes"] + x.sum()}, OWNED, "rows_mixed", "depends on the other rows"),
        (lambda x: found(x) | {"owner": found(x)["owner"] * 0}, OWNED, "rows_mixed", "depends on the other rows"),
        (lambda x: largest(x) | {"count": (x > 0).sum().expand(len(x)).clamp(max=6)}, COUNTED, "rows_mixed", "depends"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, function: Callable[[torch.Tensor], Found], rows: dict[str, str], code: str, told: str
) -> None:
    with pytest.raises(PackageError) as caught:
        written(tmp_path, function, rows)
    assert caught.value.code == PackageCode(code), str(caught.value)
    assert told in str(caught.value)


def test_elements_beyond_a_row_s_count_may_be_anything(tmp_path: Path) -> None:
    """What lies behind the count is nobody's: it may depend on the batch, and is never sent."""

    def crowded(x: torch.Tensor) -> Found:
        one = largest(x)
        free = torch.arange(6) >= one["count"][:, None]
        return one | {"boxes": torch.where(free, x.sum(), one["boxes"])}

    assert written(tmp_path, crowded, COUNTED).spec.outputs[0].count == "count"
