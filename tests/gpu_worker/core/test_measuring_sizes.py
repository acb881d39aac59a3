"""Which runs a version with open dimensions is measured by, what is never run, and the profile that follows."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gpu_worker.core.figures import Cell, SizedFigures, covers
from gpu_worker.core.gridding import are_possible
from gpu_worker.core.measuring import ladder
from gpu_worker.core.measuring_sizes import SizedMeasurement
from gpu_worker.core.surfaces import Point
from gpu_worker.core.surveying import BUDGET_S, LONGEST_S, OF_USE, SPARE, Survey, cells_by_running
from mesh import wire
from mesh.sizes import Extents
from tests.gpu_worker.core.sized_costs import IMAGE, SEQ, Cost, cpu, h100, image

MIB = 1 << 20


def takes(batch: int, extents: Extents) -> float:
    """Bytes: linear in the elements, and attention's, which are quadratic."""
    (length,) = extents
    return 2e6 + 30e3 * batch * length + 32 * batch * length**2


@dataclass(slots=True)
class Bench:
    """Runs what a measurement asks for on a device that is made up."""

    cost: Cost
    dims: tuple[wire.Dim, ...] = SEQ
    batch_max: int = 32
    slo_s: float = 0.2
    noise: float = 0.0
    memory: Callable[[int, Extents], float] | None = None
    memory_bytes: int = 0  # that a batch may take, as the measurement knows
    there_bytes: float = math.inf  # that there are
    cells: tuple[Cell, ...] = ()
    ran: list[Point] = field(default_factory=list)
    spent_s: float = 0.0

    def measure(self) -> SizedMeasurement:
        """Everything that is asked for has been run."""
        rng = random.Random(1)
        survey = Survey(self.dims, self.batch_max, self.slo_s)
        measurement = SizedMeasurement(survey, SizedFigures(self.memory_bytes), self.cells)
        measurement.loaded(0.5)
        while plan := measurement.next_plan():
            assert not measurement.due
            for batch, runs, extents in plan:
                for _ in range(runs):
                    if not any(covers((batch, extents), one) for one in measurement.figures.unfit):
                        self._run(measurement, batch, extents, rng)
            assert measurement.due
        return measurement

    def _run(self, measurement: SizedMeasurement, batch: int, extents: Extents, rng: random.Random) -> None:
        taken = self.memory(batch, extents) if self.memory is not None else 0.0
        self.ran.append((batch, extents))
        if taken > self.there_bytes:
            measurement.did_not_fit(batch, extents)
            return
        seconds = self.cost(batch, extents) * math.exp(rng.gauss(0.0, self.noise))
        self.spent_s += seconds if batch > 1 else 0.0
        measurement.ran(batch, seconds, extents, int(taken) if self.memory_bytes else 0)

    def profile(self) -> wire.Profile:
        """The profile that follows; it is possible."""
        found = self.measure().profile("eager")
        assert found is not None
        assert are_possible(found.sizes, self.dims, ladder(self.batch_max), self.cells)
        assert found.exec_s == found.sizes[-1].exec_s
        return found


def limits(profile: wire.Profile) -> dict[Extents, int]:
    return {cell.extents: max(cell.exec_s) for cell in profile.sizes}


@pytest.mark.parametrize(
    ("cost", "dims", "slo_s"), [(cpu, SEQ, 0.05), (cpu, SEQ, 1.0), (h100, SEQ, 0.02), (image, IMAGE, 0.2)]
)
def test_every_cell_has_durations_that_are_near(cost: Cost, dims: tuple[wire.Dim, ...], slo_s: float) -> None:
    bench = Bench(cost, dims, slo_s=slo_s, noise=0.05)
    profile = bench.profile()
    points = [(batch, cell.extents, s) for cell in profile.sizes for batch, s in cell.exec_s.items()]
    errors = sorted(abs(math.log(s / cost(batch, extents))) for batch, extents, s in points)
    assert errors[len(errors) // 2] < 0.06
    assert errors[len(errors) * 9 // 10] < 0.12
    assert errors[-1] < 0.25
    assert len(set(bench.ran)) < len(points), "some are read between others"
    assert profile.sizes[-1].extents == tuple(dim.most for dim in dims)
    assert profile.sizes[0].extents == tuple(dim.least for dim in dims)
    assert (profile.engine, profile.load_s) == ("eager", 0.5)


@pytest.mark.parametrize(("cost", "dims"), [(cpu, SEQ), (h100, SEQ), (image, IMAGE)])
def test_measuring_keeps_its_budget(cost: Cost, dims: tuple[wire.Dim, ...]) -> None:
    bench = Bench(cost, dims, slo_s=10.0, noise=0.1)
    bench.profile()
    assert bench.spent_s <= 1.3 * BUDGET_S  # what a run takes is known once it was run


def test_a_slow_version_is_measured_in_few_runs() -> None:
    bench = Bench(lambda batch, extents: 200 * cpu(batch, extents), slo_s=60.0)
    profile = bench.profile()
    alone_s = 200 * cpu(1, (512,))
    assert bench.spent_s <= 1.3 * 8 * alone_s
    assert limits(profile)[512,] == 1


def test_no_batch_is_made_that_takes_too_long_to_be_of_use() -> None:
    for slo_s in (0.01, 0.1, 10.0):
        useful_s = max(min(OF_USE * slo_s, LONGEST_S), cpu(1, (512,)))
        for cell in Bench(cpu, slo_s=slo_s).profile().sizes:
            assert all(cpu(batch, cell.extents) <= 1.15 * useful_s for batch in cell.exec_s if batch > 1)


@pytest.mark.parametrize("memory_mib", [50, 200, 1000])
def test_nothing_is_run_that_takes_more_memory_than_a_batch_may(memory_mib: int) -> None:
    allowed = memory_mib * MIB
    bench = Bench(cpu, memory=takes, memory_bytes=allowed, slo_s=10.0)
    profile = bench.profile()
    assert max(takes(*point) for point in bench.ran) <= allowed
    for extents, most in limits(profile).items():
        above = [size for size in ladder(32) if size > 1.5 * most]
        if above and cpu(above[0], extents) < LONGEST_S:
            assert takes(above[0], extents) > allowed / 1.6, f"{most} rows of {extents} are too few"


@pytest.mark.parametrize("there_mib", [50, 200, 1000])
def test_a_device_that_says_itself_what_does_not_fit_is_asked_for_little_that_does_not(there_mib: int) -> None:
    bench = Bench(h100, memory=takes, there_bytes=there_mib * MIB)
    profile = bench.profile()
    refused = [point for point in bench.ran if takes(*point) > bench.there_bytes]
    assert len(refused) <= len(profile.sizes)
    assert not any(covers(later, one) for one, later in itertools.combinations(refused, 2))
    for cell in profile.sizes:
        assert all(takes(batch, cell.extents) <= bench.there_bytes for batch in cell.exec_s)


@pytest.mark.parametrize("known", [True, False])
def test_a_version_of_which_no_row_of_the_greatest_extents_fits_is_refused_with_what_does(known: bool) -> None:
    room = {"memory_bytes": 20 * MIB} if known else {"there_bytes": 20 * MIB}
    measurement = Bench(cpu, memory=takes, **room).measure()  # type: ignore[arg-type]
    assert measurement.profile("eager") is None
    assert "one row of seq = 512 does not fit in the" in measurement.fault
    assert "one of seq = 256 does" in measurement.fault
    assert ("20 MiB" in measurement.fault) == known


def test_a_version_of_which_nothing_fits_is_refused() -> None:
    measurement = Bench(image, IMAGE, memory=lambda batch, extents: 1e9, there_bytes=1e6).measure()
    assert "h = 512 and w = 512" in measurement.fault
    assert "nor does a smaller one" in measurement.fault


@pytest.mark.parametrize("disturbed", range(12))
def test_memory_that_something_else_took_meanwhile_is_seen_through(disturbed: int) -> None:
    """Another version is prepared in the process while one run is on its way."""
    quiet = Bench(cpu, memory=takes, memory_bytes=200 * MIB)
    expected = limits(quiet.profile())
    readings: list[int] = []

    def disturb(batch: int, extents: Extents) -> float:
        readings.append(batch)
        return takes(batch, extents) + (300 * MIB if len(readings) == 1 + 3 * disturbed else 0)

    loud = Bench(cpu, memory=disturb, memory_bytes=200 * MIB)
    assert limits(loud.profile()) == expected


def test_memory_that_is_always_much_more_than_was_foretold_is_believed() -> None:
    bench = Bench(cpu, memory=lambda batch, extents: 8.0 * MIB * batch * (8 if extents[0] > 200 else 1))
    bench.memory_bytes = 200 * MIB
    found = limits(bench.profile())
    assert found[1,] in (16, 24)
    assert 1 <= found[512,] <= 3
    assert bench.ran.count((1, (256,))) <= 8


def test_a_device_of_fixed_shapes_is_measured_in_these_alone() -> None:
    cells = tuple(Cell((extent,), (1, 2, 4, 8, 16, 32)[: 6 - i]) for i, extent in enumerate((32, 128, 512)))
    bench = Bench(h100, noise=0.02, cells=cells)
    profile = bench.profile()
    assert {(cell.extents, tuple(cell.exec_s)) for cell in profile.sizes} == set(cells)
    assert set(bench.ran) <= {(batch, cell.extents) for cell in cells for batch in cell.batches}


def test_cells_of_such_a_device_follow_from_runs_at_once() -> None:
    def run(batch: int, extents: Extents) -> list[float]:
        return [h100(batch, extents)] * 3

    cells = cells_by_running(Survey(SEQ, 32, 0.02), run, any_batch=False, most=8)
    assert len(cells) == 8
    assert cells[-1] == Cell((512,), ladder(32))
    none = cells_by_running(Survey(SEQ, 32, 0.02), lambda batch, extents: [], any_batch=False)
    assert none == ()


def test_batches_that_take_far_longer_than_is_of_use_are_no_cells_of_such_a_device() -> None:
    survey = Survey(SEQ, 32, 0.002)
    cells = cells_by_running(survey, lambda batch, extents: [batch * extents[0] * 1e-4] * 3, any_batch=False, most=8)
    assert cells[0].batches == ladder(32)
    assert cells[-1] == Cell((512,), (1,)), "one row always is of use: it takes 51 ms, 2.5 times what else is"
    for cell in cells:
        assert all(batch == 1 or batch * cell.extents[0] * 1e-4 <= SPARE * 0.0512 * 1.2 for batch in cell.batches)


def test_a_plan_is_due_when_what_is_left_of_it_is_done_and_a_load_was_seen() -> None:
    measurement = SizedMeasurement(Survey(SEQ, 4, 1.0), SizedFigures())
    ((batch, runs, extents),) = measurement.next_plan()
    assert (batch, extents) == (1, (1,))
    for _ in range(runs):
        measurement.ran(batch, 0.01, extents)
    assert not measurement.due
    measurement.loaded(0.5)
    assert measurement.due
    measurement.next_plan()
    assert not measurement.due
    measurement.did_not_fit(1, (2,))
    assert measurement.due
    assert measurement.next_plan() == ()
    assert measurement.profile("eager") is None
    assert "seq = 1 does" in measurement.fault


def test_a_dimension_of_one_extent_is_measured_like_any_other() -> None:
    bench = Bench(cpu, dims=(wire.Dim(name="seq", least=64, most=64),), batch_max=1)
    profile = bench.profile()
    assert limits(profile) == {(64,): 1}


@pytest.mark.parametrize("first", [0, 60, 150, 300])
def test_batches_that_were_disturbed_are_run_again_as_larger_ones_took_less(first: int) -> None:
    runs = itertools.count()

    def disturbed(batch: int, extents: Extents) -> float:
        """Something else has the processor for forty runs."""
        return h100(batch, extents) + (0.01 if first <= next(runs) < first + 40 else 0.0)

    bench = Bench(disturbed, slo_s=0.02)
    errors = sorted(
        abs(math.log(seconds / h100(batch, cell.extents)))
        for cell in bench.profile().sizes
        for batch, seconds in cell.exec_s.items()
    )
    assert errors[len(errors) * 9 // 10] < 0.15, "a small batch that takes 10 ms more is off by 2.5"
    assert max(map(bench.ran.count, bench.ran)) <= 40
