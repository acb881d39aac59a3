"""scripts/rigs/controller_rig.py around a real controller in this process; the script, and its picture."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.service import ControllerService
from mesh.process.compiled import form
from mesh.process.runtime import Runtime
from mesh.process.settings import Settings
from scripts import ROOT
from scripts.bench_controller import BEHIND_S, Limits, peak_of
from scripts.rigs.controller_plots import draw
from scripts.rigs.controller_rig import GRACE_S, SLO_S, Step, driver
from tests.loops import on_loop

REQUESTS_PER_S, SECONDS = 200.0, 0.2


@on_loop
async def test_a_real_controller_is_served_by_emulated_workers_and_every_request_ends_once(tmp_path: Path) -> None:
    with driver(tmp_path, 1, models=6, devices=2) as mesh:
        port = mesh.runtime.settings.broker_port
        runtime = Runtime(
            Settings(broker_port=port, controller_port=0, data_dir=tmp_path, silence_ms_max=60_000.0, telemetry=False)
        )
        controller = ControllerService(runtime)
        controller.start()
        try:
            await mesh.until_ready()
            for seed in range(2):
                step = await mesh.play(REQUESTS_PER_S, SECONDS, np.random.default_rng(seed))
                assert step.submitted == REQUESTS_PER_S * SECONDS
                assert (step.open, step.in_time + step.refused + step.late) == (0, step.submitted)
                assert step.in_time > 0
                assert len(step.decided_s) <= step.submitted
            controller.scheduler.check()
        finally:
            controller.stop()
            runtime.transport.close()
            runtime.hub.close()


def test_of_a_request_the_first_decision_and_the_first_end_count() -> None:
    step = Step(first=10)
    assert [step.submit(1.0), step.submit(2.0)] == [10, 11]
    for number, now in ((9, 1.5), (10, 1.5), (10, 1.6)):  # 9 is of an earlier step
        step.decided(number, now)
    assert step.decided_s == [0.5]
    step.ended(10, 1.0 + SLO_S)
    step.ended(10, None)
    step.ended(9, 1.0)
    step.ended(11, None)
    assert (step.in_time, step.refused, step.late, step.open) == (1, 1, 0, 0)


def test_who_waits_for_longer_than_the_budget_and_a_moment_is_late_once() -> None:
    step = Step()
    for at in (1.0, 2.0, 3.0):
        step.submit(at)
    step.ended(0, 1.0 + SLO_S)
    assert step.overdue(2.0 + SLO_S + GRACE_S - 1e-6) == []
    assert step.overdue(3.0 + SLO_S + GRACE_S - 1e-6) == [1]
    assert step.overdue(3.0 + SLO_S + GRACE_S) == [2]
    step.ended(2, 3.0)
    assert (step.in_time, step.late, step.open) == (1, 2, 0)


def found(shares: Sequence[float], behind_ms: float = 0.0) -> tuple[float, list[float]]:
    """(the peak, the rates that were tried) where the steps have these shares in time.

    `behind_ms`: how far the schedule was behind from the third rate on.
    """
    left, rates = list(shares), []

    async def play(rate: float) -> dict[str, Any]:
        rates.append(rate)
        return {"in_time": left.pop(0), "behind_ms": behind_ms if rate >= 225.0 else 0.0}

    search = peak_of(play, Limits(1, 1.0, 100.0, 1000.0))
    with pytest.raises(StopIteration) as stopped:
        search.send(None)
    return stopped.value.value[0], rates


@pytest.mark.parametrize(
    ("shares", "peak", "rates"),
    [
        ([1.0, 1.0, 0.9, 0.98], 150.0, [100.0, 150.0, 225.0, 225.0]),
        ([1.0, 0.9, 0.99, 0.5, 0.5], 150.0, [100.0, 150.0, 150.0, 225.0, 225.0]),  # one bad step may be the machine's
        ([0.5, 0.5], 0.0, [100.0, 100.0]),
        ([1.0] * 6, 759.375, [100.0, 150.0, 225.0, 337.5, 506.25, 759.375]),
    ],
)
def test_the_peak_is_the_last_rate_before_two_that_were_not_in_time(
    shares: list[float], peak: float, rates: list[float]
) -> None:
    assert found(shares) == (peak, rates)


def test_a_rate_that_was_not_kept_is_no_peak() -> None:
    assert found([1.0] * 6, BEHIND_S * 1e3)[0] == 759.375
    assert found([1.0] * 6, BEHIND_S * 1e3 + 1) == (150.0, [100.0, 150.0, 225.0, 225.0])


def test_the_picture_has_a_line_for_each_number_of_devices(tmp_path: Path) -> None:
    at = {"per_core": 10_000.0, "decision_p99_ms": 1.0}
    cells = [{"devices": 1, "models": models, "at": [at, at]} for models in (1, 100)]
    draw([*cells, {"devices": 10, "models": 1, "at": []}], tmp_path / "controller.png")
    assert (tmp_path / "controller.png").stat().st_size > 0


@pytest.mark.end_to_end
@pytest.mark.slow
def test_the_script_measures_real_controllers(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, ROOT / "scripts/bench_controller.py", "--quick", "--json", file],
        env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip
    result = json.loads(file.read_text())
    assert [(cell["devices"], cell["models"]) for cell in result["cells"]] == [(1, 8), (4, 8)]
    assert [cell["controllers"] for cell in result["shared"]] == [2]
    assert result["form"] == form().name
    assert all(at["cpu_us"] > 0 for cell in result["cells"] for at in cell["at"])
