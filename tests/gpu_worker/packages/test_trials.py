"""Models run in batches: functions of tensors, some of which work across rows, however rarely or little."""

from collections.abc import Callable

import pytest
import torch

from gpu_worker.packages import examples
from gpu_worker.packages.batches import ROWS, Draw
from gpu_worker.packages.comparing import difference, same
from gpu_worker.packages.trials import Trial, check, check_beside
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

Function = Callable[[torch.Tensor], torch.Tensor]
CLOSE = 1e-6


def floats(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.rand(rows, 200, generator=generator)]


def ids(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randint(0, 50, (rows, 3), generator=generator)]


def flags(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.rand(rows, 2, generator=generator) < 0.5]


def two_rows(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Returns the author's two rows, again and again."""
    return examples.KeptRows((torch.tensor([[1, 2, 3], [3, 1, 1]]),)).draw(rows, generator)


def code_of(function: Function, draw: Draw = floats, batch_max: int = 17) -> str:
    """Returns the code of the refusal; empty if the function passes."""

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [function(inputs[0])]

    trial = Trial(draw, batch_max, draw(1, torch.Generator().manual_seed(1)))
    try:
        one = function(trial.alone[0].inputs[0])
        spec = wire.TensorSpec(name="y", dtype=str(one.dtype).removeprefix("torch."), shape=(-1, *one.shape[1:]))
        results = check("m:1", [spec], run, trial, CLOSE)
        check_beside("m:1", [spec], run, trial, results, CLOSE)
    except PackageError as error:
        return error.code
    return ""


def last_place(x: torch.Tensor) -> torch.Tensor:
    places = torch.arange(len(x))
    return x + ((places == len(x) - 1) & (places > 3)).view(-1, 1)


def others_like_it(x: torch.Tensor) -> torch.Tensor:
    return x + (x[:, None] == x[None]).all(-1).sum(1, keepdim=True)


def without_near_ones(x: torch.Tensor) -> torch.Tensor:
    near = ((x[:, None] - x[None]).abs().sum(-1) < 0.5).triu(1).any(0)
    return torch.where(near[:, None], 0.0, x)


@pytest.mark.parametrize("batch_max", [2, 3, 4, 5, 17])
@pytest.mark.parametrize(
    ("function", "draw"),
    [
        (lambda x: x | x.any(0), flags), (lambda x: x & x.all(0), flags),
        (lambda x: torch.where(x.sum() % 2 == 0, x, -x), ids), (lambda x: torch.maximum(x, x.amax(0)), ids),
        (lambda x: x * (x[:1, :1] <= x[:, :1]), ids), (lambda x: x.flip(0), ids), (lambda x: x.flip(0), two_rows),
        (lambda x: x.float() - x.float().mean(0), two_rows), (others_like_it, ids), (others_like_it, floats),
        (without_near_ones, floats), (lambda x: x / x.max(), floats),
    ],
)  # fmt: skip
def test_rows_that_depend_on_each_other_are_seen_in_batches_of_any_size(
    function: Function, draw: Draw, batch_max: int
) -> None:
    assert code_of(function, draw, batch_max) == PackageCode.ROWS_MIXED


@pytest.mark.parametrize(
    ("function", "draw"),
    [
        (lambda x: torch.where(x.max() > 1e4, -x, x), floats), (lambda x: torch.where(x.min() < -1e4, -x, x), floats),
        (lambda x: torch.where(x.norm() > 1e4, x / x.norm(), x), floats),
        (lambda x: torch.where(x.isinf().any(), -x, x), floats),
        (lambda x: torch.where(x.isnan().any(), -x, x), floats),
        (lambda x: torch.where(x.all(), ~x, x), flags), (lambda x: torch.where(x.any(), x, ~x), flags),
        (lambda x: x + (x > 30).all(), ids), (lambda x: x + (x > 0).any(), ids),
    ],
)  # fmt: skip
def test_what_is_decided_for_a_batch_by_rare_values_is_seen(function: Function, draw: Draw) -> None:
    assert code_of(function, draw) == PackageCode.ROWS_MIXED


@pytest.mark.parametrize("batch_max", [5, 6, 17])
def test_the_last_place_of_a_batch_is_no_other_place(batch_max: int) -> None:
    assert code_of(last_place, batch_max=batch_max) == PackageCode.ROWS_MIXED


@pytest.mark.parametrize("batch_max", [1, 2, 3, 4, 5, 6, 32])
@pytest.mark.parametrize("draw", [floats, ids, flags, two_rows])
def test_rows_that_are_computed_by_themselves_are_taken(draw: Draw, batch_max: int) -> None:
    assert code_of(lambda x: x.float().cumsum(1).softmax(1), draw, batch_max) == ""


def test_in_batches_of_one_rows_are_never_together() -> None:
    assert code_of(lambda x: x - x.mean(0), batch_max=1) == ""


def test_companions_of_a_row_that_is_tried_are_other_rows() -> None:
    trial = Trial(two_rows, 2, two_rows(1, torch.Generator()))
    pairs = [batch for batch in trial.mixed if None in batch.origins]
    assert any(not torch.equal(batch.inputs[0][0], batch.inputs[0][1]) for batch in pairs)
    assert {origin for batch in trial.mixed for origin in batch.origins} >= set(range(ROWS))


# -- rounding ---------------------------------------------------------------------------------------------------------


def chaotic(x: torch.Tensor) -> torch.Tensor:
    """Amplifies a last bit a thousand times."""
    for _ in range(10):
        x = 3.9 * x * (1 - x)
    return x


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Changes the last bit if there are several rows, as sums in another order do."""
    return x * (1 + torch.finfo(x.dtype).eps) if len(x) > 1 else x


def test_what_rounding_makes_of_a_row_is_no_other_row() -> None:
    x = torch.rand(3, 4)
    assert difference(chaotic(x), chaotic(rounded(x))) > 10 * CLOSE
    assert code_of(lambda x: chaotic(rounded(x))) == ""


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_what_others_make_of_a_row_is_another_row_however_much_rounding_makes(share: float) -> None:
    assert code_of(lambda x: chaotic(x) + share * x.mean()) == PackageCode.ROWS_MIXED


def test_integers_that_rounding_tips_are_no_other_row() -> None:
    x = torch.rand(4, 200)
    assert not torch.equal((chaotic(rounded(x)) * 300).long(), (chaotic(x) * 300).long())
    assert code_of(lambda x: (chaotic(rounded(x)) * 300).long()) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(torch.int32) + len(x),
        lambda x: (x.view(torch.int32) + len(x)) % 2 == 0,
        lambda x: torch.cat([x.argsort(1).repeat(1, 10), x.sum().mul(1e6).long().expand(len(x), 1)], 1),
    ],
)
def test_integers_that_a_last_bit_changes_altogether_are_compared_all_the_same(function: Function) -> None:
    assert code_of(function) == PackageCode.ROWS_MIXED


def test_a_few_of_many_integers_may_be_tipped_but_not_the_same_ones_in_several_rows() -> None:
    x = torch.arange(8000).reshape(4, 2000)
    tipped, column = x.clone(), x.clone()
    tipped[0, 5] += 1
    column[:2, 5] += 1
    assert same(x, tipped, CLOSE)
    assert not same(x, column, CLOSE)
    assert not same(x, tipped, 0.0), "where nothing is rounded nothing is tipped"


def test_a_tie_in_a_row_that_is_there_twice_is_one_tie() -> None:
    x = torch.arange(4000).reshape(2, 2000)[[0, 0, 1]]
    tipped = x.clone()
    tipped[:2, 5] += 1
    assert same(x, tipped, CLOSE)
