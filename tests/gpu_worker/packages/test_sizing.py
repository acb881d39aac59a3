"""Inputs at given extents, and the batches of unequal rows that a model with open dimensions is tried on."""

import pytest
import torch

from gpu_worker.packages.apart import Apart
from gpu_worker.packages.batches import ROWS
from gpu_worker.packages.examples import Drawn, KeptRows, ValueKind, filling
from gpu_worker.packages.sizing import LARGE_POSITIONS, PAIR_POSITIONS, Sizing, product
from gpu_worker.packages.trials import Trial, check
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.sizes import holds, joint

SEQ = wire.Dim(name="seq", least=1, most=512)
IDS = wire.TensorSpec(name="ids", dtype="int64", shape=(-1, -1), dims=("seq",), pad=9.0)
MASK = wire.TensorSpec(name="mask", dtype="bool", shape=(-1, -1), dims=("seq",))
LENGTH = wire.TensorSpec(name="n", dtype="int64", shape=(-1,))
PICTURE = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 3, -1, -1), dims=("", "h", "w"))
TEXT = Sizing((IDS, MASK, LENGTH), (SEQ,))
PICTURES = Sizing((PICTURE,), (wire.Dim(name="h", least=8, most=640), wire.Dim(name="w", least=8, most=480)))
KINDS = (ValueKind("range", 0, 50), ValueKind("mask"), ValueKind("range", 1, 1, 0))


REPEATED = [[[1, 2, 3, 1, 2]], [[True, False, False, True, False]], [3]]


def trial(sizing: Sizing = TEXT, batch_max: int = 16) -> Trial:
    kinds = KINDS if sizing.inputs == TEXT.inputs else (ValueKind("normal"),)
    draw = Drawn(sizing.inputs, kinds, sizing).draw
    return Trial(draw, batch_max, filling(draw, sizing, 1), sizing=sizing)


def test_rows_are_filled_up_with_the_value_of_their_input() -> None:
    ids, mask, n = TEXT.padded([torch.ones(2, 3).long(), torch.ones(2, 3).bool(), torch.tensor([3, 1])], (5,))
    assert ids.tolist() == [[1, 1, 1, 9, 9]] * 2
    assert mask.tolist() == [[True, True, True, False, False]] * 2
    assert n.tolist() == [3, 1]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_rows_are_cut_or_repeated_to_other_extents_and_lengths_stay_within() -> None:
    rows = [torch.tensor([[1, 2, 3]]), torch.tensor([[True, False, False]]), torch.tensor([3])]
    assert [t.tolist() for t in TEXT.fitted(rows, (2,))] == [[[1, 2]], [[True, False]], [2]]
    assert [t.tolist() for t in TEXT.fitted(rows, (5,))] == [
        [[1, 2, 3, 1, 2]],
        [[True, False, False, True, False]],
        [3],
    ]
    kept = KeptRows((torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.ones(2, 3).bool(), torch.tensor([3, 900])), TEXT)
    assert kept.filling()[0].tolist() == [[1]]
    assert kept.filling()[2].tolist() == [1]


@pytest.mark.parametrize("sizing", [TEXT, PICTURES])
def test_extents_from_the_least_to_the_greatest_are_tried(sizing: Sizing) -> None:
    made = trial(sizing)
    own = [sizing.of(batch.inputs) for batch in made.alone]
    assert own[0] == sizing.least
    assert own[-1] == sizing.most
    assert len(set(own[:ROWS])) == ROWS
    assert all(holds(sizing.most, one) and holds(one, sizing.least) for one in own)


def test_of_two_dimensions_neither_of_two_rows_holds_the_other() -> None:
    _, one, other, _ = PICTURES.tried
    assert not holds(one, other)
    assert not holds(other, one)


@pytest.mark.parametrize("sizing", [TEXT, PICTURES])
@pytest.mark.parametrize("batch_max", [1, 2, 5, 16, 64])
def test_rows_of_a_batch_keep_their_values_and_no_batch_is_large(sizing: Sizing, batch_max: int) -> None:
    made = trial(sizing, batch_max)
    for batch in (*made.mixed, *made.padded):
        extents, own = sizing.of(batch.inputs), made.extents_in(batch)
        assert holds(extents, joint(own))
        bound = PAIR_POSITIONS if batch.rows == 2 else max(5 * PAIR_POSITIONS // 2, LARGE_POSITIONS)
        if batch.rows > 1:
            assert batch.rows * product(extents) <= max(bound, batch.rows * product(sizing.least))
        for place, origin in enumerate(batch.origins):
            if origin is None:
                continue
            alone = sizing.padded(made.alone[origin].inputs, extents)
            assert all(torch.equal(one[0], many[place]) for one, many in zip(alone, batch.inputs, strict=True))
    assert batch_max == 1 or any(len(set(batch.own)) > 1 for batch in made.mixed)


def test_of_an_exact_model_only_rows_of_equal_extents_are_together() -> None:
    sizing = Sizing(TEXT.inputs, TEXT.dims, exact=True)
    made = trial(sizing)
    assert made.padded == []
    assert all(set(made.extents_in(batch)) == {sizing.of(batch.inputs)} for batch in made.mixed)
    assert len({sizing.of(batch.inputs) for batch in made.mixed}) > 1


def test_every_row_shows_its_first_element() -> None:
    mask = ValueKind("mask").draw(torch.bool, (50, 7), torch.Generator().manual_seed(0))
    assert bool(mask[:, 0].all())
    assert not bool(mask.all())


def test_outputs_are_cut_to_the_extents_of_their_row() -> None:
    spec = wire.TensorSpec(name="y", dtype="float32", shape=(-1, -1), dims=("seq",))
    apart = Apart([spec], TEXT, [[torch.ones(1, 2)], [torch.ones(1, 4)]])
    (found,) = apart.rows([torch.full((3, 9), 7.0)], [(2,), (4,), (9,)])
    assert found.tolist() == [[7, 7, 0, 0], [7, 7, 7, 7], [7, 7, 7, 7]]


def test_elements_go_to_the_rows_that_own_them_in_their_order() -> None:
    specs = [
        wire.TensorSpec(name="boxes", dtype="float32", shape=(-1,), owner="owner"),
        wire.TensorSpec(name="owner", dtype="int64", shape=(-1,)),
    ]
    alone = [[torch.ones(2), torch.zeros(2).long()]]
    apart = Apart(specs, Sizing(), alone)
    boxes, owner = apart.rows([torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1, 0, 1, 1])], [()] * 3)
    assert boxes.tolist() == [[2, 0], [1, 3], [0, 0]]
    assert owner.tolist() == [1, 3, 0]


def test_a_model_whose_answers_depend_on_padding_is_told_the_extents() -> None:
    spec = wire.TensorSpec(name="output", dtype="float32", shape=(-1,))
    sizing = Sizing((wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("seq",)),), (SEQ,))
    with pytest.raises(
        PackageError, match=r"a row of seq=1 is another one where the row is filled up to seq=2"
    ) as told:
        check("m:1", [spec], lambda inputs: [inputs[0].mean(1)], trial(sizing), 1e-5)
    assert told.value.code == PackageCode.PADDING_MATTERS
