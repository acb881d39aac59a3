"""The cells of the bench of lengths, and the rules that it compares with."""

import pytest

from gearmesh.simulation.arrivals.loads import arrivals
from scripts.bench_lengths import ARRIVAL, DEADLINES, LIMIT, OURS, RULES, LengthRun, by_load, unexpected
from scripts.rigs.length_cells import ARRIVALS, COSTS, LENGTHS, LOADS, OBJECTIVES, LengthCell, all_cells
from scripts.rigs.length_refusals import RULES as REFUSALS
from scripts.rigs.length_refusals import RefusalRun, table
from scripts.rigs.length_rules import first_come, longest_by_deadline


def cost(rows: int, length: int) -> float:
    return 1.0 + 0.1 * rows * length


def test_there_is_a_cell_for_each_cost_length_arrival_objective_and_load() -> None:
    cells = all_cells()
    assert len(set(cells)) == len(cells) == 2 * 5 * 2 * 4 * 5
    assert (len(COSTS), len(LENGTHS), len(ARRIVALS), len(OBJECTIVES), len(LOADS)) == (2, 5, 2, 4, 5)


@pytest.mark.parametrize(
    ("cell", "longest_ms"),
    [
        (LengthCell("cpu", "mix", "Poisson", "4x", 1.0), 89.38),
        (LengthCell("h100", "short", "CV 3", "10x", 0.5), 0.9008),
    ],
)
def test_objectives_are_multiples_of_what_the_longest_takes_alone(cell: LengthCell, longest_ms: float) -> None:
    found = cell.scenario(500)
    (factor,) = OBJECTIVES[cell.objective]
    assert found.load.slo_ms == pytest.approx((factor * longest_ms,), rel=1e-3)
    assert found.load.rate_rps is not None
    assert found.load.rate_rps * found.load.seconds == pytest.approx(500)


def test_load_one_is_one_over_the_mean_share() -> None:
    """Of 16 and 512 on the CPU, with 4 x 89 ms: 32 of 16 take 87.4 ms; of 512 four take 339 ms, hardly less each."""
    rate_rps = LengthCell("cpu", "two-point", "Poisson", "4x", 1.0).scenario(100).load.rate_rps
    assert rate_rps == pytest.approx(1e3 / (0.8 * (5.9 / 32 + 0.159 * 16 + 7.9e-6 * 256) + 0.2 * 84.95), rel=0.02)


def test_all_are_padded_to_the_longest_on_the_same_arrivals() -> None:
    cell = LengthCell("h100", "mix", "Poisson", "mixed", 1.0)
    opened, closed = cell.scenario(200), cell.scenario(200, closed=True)
    assert closed.models[0].open is None
    assert closed.models[0].exec_s[1] == pytest.approx(0.000952, rel=1e-3)
    assert (arrivals(opened, 11).time_s == arrivals(closed, 11).time_s).all()


def test_the_earliest_deadline_is_kept_and_as_many_go_with_it_as_it_allows() -> None:
    """The first takes 1 + 0.1 x 3 x 10 = 4 with two of its length; with the long one it would be late."""
    requests = [(0.0, 4.0, 10), (0.0, 5.0, 10), (0.0, 5.5, 10), (0.0, 9.0, 40)]
    assert longest_by_deadline(requests, cost, 32) == [True, True, True, True]
    assert longest_by_deadline(requests, cost, 2) == [True, True, True, False]
    assert longest_by_deadline([(0.0, 1.9, 10), (0.0, 2.0, 10)], cost, 32) == [False, True]


def test_who_comes_first_is_served_first_though_it_is_too_late() -> None:
    requests = [(0.0, 1.5, 10), (0.5, 4.0, 10), (0.6, 2.0, 10), (0.7, 9.0, 10)]
    assert first_come(requests, cost, 1) == [False, True, False, True]


def test_a_run_has_a_record_for_each_rule_of_those_that_are_no_policies() -> None:
    run = LengthRun(LengthCell("cpu", "two-point", "Poisson", "4x", 2.0), 11, 200, None, False)
    scenario = run.cell.scenario(200)
    records = run.others(scenario, arrivals(scenario, 11))
    assert records.keys() == {DEADLINES, ARRIVAL}
    assert all(0 < record["attainment"] < 1 for record in records.values())


def test_tables_have_a_row_for_each_load_and_what_exceeds_the_bound_is_told() -> None:
    cell = LengthCell("cpu", "mix", "Poisson", "4x", 1.0)
    records = {rule: {"attainment": 0.5} for rule in RULES} | {LIMIT: {"attainment": 0.6}}
    found = {LengthRun(cell, 11, 100, None, True): records}
    rows = [line for line in by_load(found, "cpu", [1.0]) if line.startswith(("| 1 |", "| all |"))]
    assert len(rows) == 2
    assert "0.833" in rows[0]
    assert unexpected(found) == []
    assert len(unexpected({run: old | {OURS: {"attainment": 0.7}} for run, old in found.items()})) == 1


def test_early_refusals_are_compared_on_the_same_arrivals_with_so_much_for_each_device() -> None:
    run = RefusalRun(LengthCell("cpu", "two-point", "Poisson", "4x", 2.0), 11, 150, 2, 0.02)
    one = run.cell.scenario(150)
    assert run.scenario().load.rate_rps == pytest.approx(2 * (one.load.rate_rps or 0.0))
    assert (run.scenario().devices.count, run.scenario().noise.exec_cv) == (2, 0.02)
    records = run.records()
    assert records.keys() == REFUSALS.keys()
    assert records["none"]["told"] > records["both"]["told"]  # bad news comes sooner
    rows = [line for line in table({run: records}, [2.0]) if line.startswith(tuple(f"| {rule} |" for rule in REFUSALS))]
    assert len(rows) == len(REFUSALS)
    assert rows[0].split("|")[2].strip() == f"{records['none']['attainment']:.3f}"
