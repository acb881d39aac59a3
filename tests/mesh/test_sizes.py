"""Shapes and bytes of rows with open dimensions, and which specs are possible."""

from typing import Any

import pytest

from mesh import sizes, wire

DIMS = (wire.Dim(name="h", least=1, most=64), wire.Dim(name="w", least=1, most=32))
IMAGE = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 3, -1, -1), dims=("", "h", "w"))
KIND = wire.TensorSpec(name="kind", dtype="int64", shape=(-1, 10))


def spec(**fields: Any) -> wire.ModelSpec:
    return wire.ModelSpec(
        **{"inputs": (IMAGE,), "outputs": (KIND,), "batch_max": 4, "slo_ms": 1.0, "dims": DIMS} | fields
    )


def test_joint_extents_hold_each_and_are_the_least_that_do() -> None:
    assert sizes.joint([(3, 9), (5, 2), (4, 4)]) == (5, 9)
    assert sizes.joint([(), ()]) == ()
    assert sizes.holds((5, 9), (5, 2))
    assert not sizes.holds((5, 9), (6, 2))


def test_rows_have_the_extents_of_their_request() -> None:
    assert sizes.row_shape(IMAGE, DIMS, (5, 9)) == (3, 5, 9)
    assert sizes.row_bytes((IMAGE, KIND), DIMS, (5, 9)) == (540, 80)
    assert sizes.row_bytes((KIND,), (), ()) == (80,)
    assert sizes.most_of(spec()) == (64, 32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": (DIMS[0],)},  # w is not known
        {"dims": (*DIMS, DIMS[0])},  # twice
        {"dims": (DIMS[0], wire.Dim(name="w", least=9, most=3))},
        {"dims": (*DIMS, wire.Dim(name="t", least=1, most=3))},  # of no input
        {"inputs": (wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1)),)},  # without a name
        {"inputs": (wire.TensorSpec(name="x", dtype="float32", shape=(-1, 3, 64), dims=("", "h")),)},  # not -1
        {"inputs": (wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("h", "w")),)},  # one too many
        {"outputs": (wire.TensorSpec(name="y", dtype="float32", shape=(-1, -1)),)},  # padded: what would be cut?
    ],
)
def test_a_spec_with_dimensions_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    assert spec().fault() == ""
    assert spec(**wrong).fault() != ""


def test_an_exact_model_may_give_extents_of_its_own() -> None:
    own = wire.TensorSpec(name="y", dtype="float32", shape=(-1, -1, -1), dims=("", ""))
    assert spec(outputs=(own,), exact=True).fault() == ""
