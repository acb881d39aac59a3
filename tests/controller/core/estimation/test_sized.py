"""Estimates by extents: they never fall, never promise what does not fit, and follow what results show."""

import math
import random
from itertools import pairwise, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.core.estimation.estimates import Pace, Term, make_curve
from controller.core.estimation.sized import CLASS_STEP, CLASSES_MAX, SizedCurve, can_be_sized, make_sized_curve
from mesh import wire
from mesh.sizes import Extents, joint
from tests.controller.core.open_models import EDGES, IMAGE, SEQ, Duration, encoder, open_spec, pixels, sized_profile

MEMORY = 1 << 20  # pixels of a batch


def texts(*, any_batch: bool = True, profile: wire.Profile | None = None, device: Term | None = None) -> SizedCurve:
    return make_sized_curve(profile or sized_profile(), open_spec(), any_batch, device or Term(), Pace())


def images(*, any_batch: bool = True) -> SizedCurve:
    profile = sized_profile(pixels, IMAGE, elements_max=MEMORY)
    return make_sized_curve(profile, open_spec(IMAGE), any_batch, Term(), Pace())


def learned(one: SizedCurve, true_s: Duration, sizes: list[Extents], runs: int, noise: float, seed: int = 7) -> None:
    rng = random.Random(seed)
    for _ in range(runs):
        rows, extents = rng.choice((1, 2, 4, 8, 16)), rng.choice(sizes)
        long = 10.0 if rng.random() < 0.01 else 1.0  # an outlier
        one.learn(rows, true_s(rows, extents) * math.exp(rng.gauss(0.0, noise)) * long, extents)


def test_at_the_edges_the_estimate_is_the_profile() -> None:
    one = texts()
    for rows, edge in product((1, 8, 32), (16, 128, 512)):
        assert one.exec_s(rows, (edge,)) == pytest.approx(encoder(rows, (edge,)))


def test_between_edges_it_is_interpolated_where_any_shape_is_computed_and_rounded_up_where_not() -> None:
    middle = (encoder(4, (128,)) + encoder(4, (256,))) / 2
    assert texts().exec_s(4, (192,)) == pytest.approx(middle)
    assert texts(any_batch=False).exec_s(4, (192,)) == pytest.approx(encoder(4, (256,)))
    four = sum(pixels(2, extents) for extents in product((64, 128), (128, 256))) / 4
    assert images().exec_s(2, (96, 192)) == pytest.approx(four)
    assert images(any_batch=False).exec_s(2, (96, 192)) == pytest.approx(pixels(2, (128, 256)))


def test_below_the_first_edge_it_is_that_of_the_first_edge() -> None:
    assert texts().exec_s(3, (2,)) == texts().exec_s(3, (16,))
    assert images().exec_s(1, (32, 40)) == images().exec_s(1, (64, 64))


def test_shapes_and_batches_are_padded_only_where_they_must_be() -> None:
    free, fixed = texts(), texts(any_batch=False)
    assert (free.shape((100,)), free.padded(5, (100,))) == ((100,), 5)
    assert (fixed.shape((100,)), fixed.padded(5, (100,))) == ((128,), 8)
    assert images(any_batch=False).shape((65, 64)) == (128, 64)


def test_a_model_that_pads_nothing_is_executed_in_the_shapes_that_come() -> None:
    one = make_sized_curve(sized_profile(), open_spec(exact=True), False, Term(), Pace())
    assert one.shape((100,)) == (100,)


@pytest.mark.parametrize("any_batch", [True, False])
def test_a_batch_beyond_the_largest_that_was_measured_does_not_fit(any_batch: bool) -> None:
    one = images(any_batch=any_batch)
    assert one.joint_max((256, 256)) == 16
    assert one.exec_s(16, (256, 256)) < math.inf
    assert one.exec_s(17, (256, 256)) == math.inf
    assert one.exec_s(17, (129, 129)) == math.inf  # what fits between edges was not measured
    assert one.exec_s(32, (128, 128)) < math.inf
    assert one.exec_s(33, (64, 64)) == math.inf
    assert one.tables[one.place((256, 256))][17] == math.inf


def test_a_row_that_fits_nowhere_takes_for_ever_and_its_share_is_a_number() -> None:
    cells = tuple(wire.SizeTimes(extents=(edge, 256), exec_s={1: 0.01}) for edge in (64, 128))
    small = wire.SizeTimes(extents=(64, 64), exec_s={1: 0.005, 2: 0.006})
    profile = wire.Profile(exec_s={1: 0.01}, load_s=0.01, sizes=(small, *cells))
    dims = (wire.Dim(name="h", least=1, most=128), wire.Dim(name="w", least=1, most=256))
    one = make_sized_curve(profile, open_spec(dims), True, Term())
    assert one.alone_s(1, (128, 64)) == math.inf
    assert one.alone_max((128, 64)) == 0
    assert 0 < one.share((128, 256)) < 1


def test_classes_are_as_fine_as_the_step_of_shares_and_no_more_than_they_may_be() -> None:
    one = texts()
    assert len(one.tables) <= CLASSES_MAX[0] + 1 + len(EDGES[SEQ][0])
    shares = one.shares
    assert all(high >= low for low, high in pairwise(shares))
    assert all(one.place((s,)) <= one.place((s + 1,)) for s in range(1, 512))
    step = max(CLASS_STEP, (shares[-1] / shares[0]) ** (1 / CLASSES_MAX[0]))
    for s in range(1, 513):
        for rows in (1, 7, 32):
            table_s = one.tables[one.place((s,))][rows]
            assert one.exec_s(rows, (s,)) <= table_s * (1 + 1e-9) <= one.exec_s(rows, (s,)) * step * 1.03


def test_with_one_size_the_table_is_that_of_a_model_without_open_dimensions() -> None:
    dims = (wire.Dim(name="seq", least=64, most=64),)
    profile = sized_profile(encoder, dims, edges=((64,),))
    one = make_sized_curve(profile, open_spec(dims), True, Term())
    plain = make_curve(profile, 32, True, Term())
    assert one.tables == [pytest.approx(plain.base_s)]


profiles = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=5)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(profiles, st.booleans(), st.lists(st.tuples(st.integers(1, 16), st.floats(1e-3, 10.0)), max_size=20))
@example(
    cells=[(1, [0.25, 0.125, 0.6612874031010901]), (2, [0.5, 0.9003678779943597, 0.5])], any_batch=True, results=[]
)
def test_whatever_was_measured_and_learned_nothing_falls_in_rows_or_extents(
    cells: list[tuple[int, list[float]]], any_batch: bool, results: list[tuple[int, float]]
) -> None:
    edges = sorted({edge for edge, _ in cells})
    found = {edge: {1 << i: s for i, s in enumerate(times)} for edge, times in cells}
    sizes = tuple(wire.SizeTimes(extents=(edge,), exec_s=found[edge]) for edge in edges)
    profile = wire.Profile(exec_s=found[edges[-1]], load_s=0.01, sizes=sizes)
    dims = (wire.Dim(name="n", least=1, most=edges[-1]),)
    one = make_sized_curve(profile, open_spec(dims), any_batch, Term())
    for rows, factor in results:
        extents = (1 + rows * 7 % edges[-1],)
        if rows <= one.joint_max(extents):
            one.learn(rows, factor * one.exec_s(rows, extents), extents)
    for table in one.tables:
        assert table == sorted(table)
    for low, high in pairwise(one.tables):
        assert all(a <= b for a, b in zip(low, high, strict=True))
    for n in range(1, edges[-1] + 1):
        for rows in range(1, one.batch_max + 1):
            own_s = one.exec_s(rows, (n,)) / one.scale
            assert own_s <= one.tables[one.place((n,))][rows] * (1 + 1e-9)
            if own_s < math.inf:  # what was measured at no smaller extents and no greater ones is not promised
                assert rows <= min(max(found[edge]) for edge in edges if edge <= max(n, edges[0]))


def test_two_requests_together_cost_at_least_what_each_does() -> None:
    one = images()
    rng = random.Random(3)
    for _ in range(300):
        a, b = [(rng.randint(32, 256), rng.randint(32, 256)) for _ in range(2)]
        both = joint((a, b))
        for rows in (1, 5, 16):
            assert one.tables[one.place(both)][rows] >= max(one.tables[one.place(s)][rows] for s in (a, b))
            assert one.exec_s(rows, both) >= max(one.exec_s(rows, s) for s in (a, b))


def test_it_follows_a_device_that_is_slower_than_its_profile_and_no_outlier() -> None:
    one = texts()
    learned(one, lambda rows, extents: 1.4 * encoder(rows, extents), [(s,) for s in (16, 60, 200, 500)], 1500, 0.05)
    for rows, extents in product((1, 4, 16), [(16,), (60,), (200,), (500,)]):
        assert one.exec_s(rows, extents) == pytest.approx(1.4 * encoder(rows, extents), rel=0.12)


def test_it_learns_for_each_bucket_of_extents_what_the_others_do_not_show() -> None:
    def true_s(rows: int, extents: Extents) -> float:
        return encoder(rows, extents) * (1.5 if extents[0] > 180 else 0.9)

    one = texts()
    learned(one, true_s, [(16,), (64,), (256,), (512,)], 3000, 0.03)
    for extents in [(16,), (64,), (256,), (512,)]:
        assert one.exec_s(8, extents) == pytest.approx(true_s(8, extents), rel=0.12)


def test_it_learns_in_two_dimensions() -> None:
    def true_s(rows: int, extents: Extents) -> float:
        return 1.25 * pixels(rows, extents)

    one = images()
    learned(one, true_s, [(64, 64), (128, 64), (200, 250), (256, 256)], 1500, 0.05)
    for extents in [(64, 64), (128, 64), (256, 256)]:
        assert one.exec_s(4, extents) == pytest.approx(true_s(4, extents), rel=0.12)


def test_models_of_a_device_share_what_it_shows() -> None:
    device = Term()
    one, other = texts(device=device), texts(device=device)
    learned(one, lambda rows, extents: 1.5 * encoder(rows, extents), [(64,)], 300, 0.0)
    assert other.exec_s(4, (64,)) > 1.03 * encoder(4, (64,))


def test_a_result_of_what_does_not_fit_teaches_nothing() -> None:
    one = images()
    before = one.exec_s(4, (64, 64))
    assert one.learn(17, 1.0, (256, 256)) == 0.0
    assert one.learn(64, 1.0, (64, 64)) == 0.0
    assert one.exec_s(4, (64, 64)) == before


def test_a_doubt_is_of_the_request_s_own_extents() -> None:
    one = texts()
    one.learned_s = 1.0
    assert not one.doubt(1, 0.9 * encoder(1, (512,)), 1.2, (512,))
    assert one.doubt(1, 0.9 * encoder(1, (512,)), 2.0, (512,))
    assert one.exec_s(1, (512,)) <= 0.9 * encoder(1, (512,))


def test_a_profile_has_to_tell_durations_up_to_the_greatest_extents() -> None:
    assert can_be_sized(sized_profile(), open_spec())
    assert not can_be_sized(None, open_spec())
    assert not can_be_sized(wire.Profile(exec_s={1: 0.1}, load_s=0.1), open_spec())
    assert not can_be_sized(sized_profile(edges=((16, 256),)), open_spec())
    assert not can_be_sized(sized_profile(), open_spec(IMAGE))


def test_places_of_images_are_in_the_order_of_either_dimension() -> None:
    one = images()
    assert len(one.tables) <= (CLASSES_MAX[1] + 1 + len(EDGES[IMAGE][0])) ** 2
    for h in range(32, 256, 7):
        tables = [one.tables[one.place((h, w))][1] for w in range(32, 257)]
        assert tables == sorted(tables)


def test_the_greatest_extents_are_meant_where_none_are_said() -> None:
    one = texts()
    assert one.exec_s(4) == pytest.approx(encoder(4, (512,)))
    assert one.total_s(10) == pytest.approx(10 * one.share((512,)))
    assert one.least_s() == pytest.approx(encoder(1, (16,)))


@pytest.mark.parametrize("dims", [SEQ, IMAGE])
def test_extents_beyond_what_was_profiled_are_taken_for_the_greatest(dims: tuple[wire.Dim, ...]) -> None:
    one = texts() if dims is SEQ else images()
    most = tuple(dim.most for dim in dims)
    beyond = tuple(2 * extent for extent in most)
    assert one.place(beyond) == one.place(most)
    assert one.exec_s(2, beyond) == one.exec_s(2, most)
