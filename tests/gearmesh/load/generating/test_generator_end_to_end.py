"""gearmesh load against a real mesh with an emulated device."""

import json

import pytest

from gearmesh.cli.load import ReportFiles, carry_out
from gearmesh.load.errors import LoadError
from gearmesh.load.options import LoadOptions, plan_of
from gearmesh.load.plan import Closed, LoadPhase, LoadTestPlan, Open, RequestStream, Slo
from gearmesh.load.targets import Where, find_targets, mesh_pids
from gearmesh.simulation.parts import Workload
from scripts.rigs.meshes import LONG_MS, emulated_device, emulated_model, run_with_mesh

ALL_AT_ONCE = 20_000  # requests: no machine sends 95 % of them within 20 ms, at 1 us each

pytestmark = pytest.mark.end_to_end


def test_open_and_closed_loops_side_by_side_reported_in_tables_a_file_and_a_picture(tmp_path):
    for name in ("a", "b"):
        emulated_model(tmp_path / "models", name)

    async def scenario(running):
        where = Where((running.address,))
        with pytest.raises(LoadError, match=r"a, b"):
            await find_targets(where, ["c"])
        targets = await find_targets(where, [])
        streams = (
            RequestStream("open", ("a",), Open(Workload("poisson", 200.0)), Slo((2.0,), "batch1")),
            RequestStream("closed", ("b",), Closed(4), Slo((LONG_MS,))),
        )
        plan = LoadTestPlan("both", (LoadPhase("one", 1.0, streams), LoadPhase("two", 0.5, streams[1:])))
        outputs = ReportFiles(tmp_path / "report.json", tmp_path / "report.png", progress=False)
        await carry_out(plan, targets, where, 2, outputs, await mesh_pids(where))

    run_with_mesh(scenario, tmp_path / "models", tmp_path / "data", device=emulated_device(tmp_path), compact=True)
    found = json.loads((tmp_path / "report.json").read_text())
    one, two = found["phases"]
    assert [part["name"] for part in one["by_stream"]] == ["open", "closed"]
    assert one["generator"]["scheduled"] == one["by_stream"][0]["n"]
    assert one["by_stream"][1]["n"] > 0
    assert one["n"] == sum(outcome["n"] for outcome in one["outcomes"].values())
    assert two["outcomes"]["ok"]["n"] > 0
    assert one["cold_starts"] is not None
    assert found["batch1_ms"]["a"] > 1.0
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_that_the_generator_cannot_keep_is_said_and_ends_with_2(tmp_path, capsys):
    emulated_model(tmp_path / "models", "a")

    async def scenario(running):
        where = Where((running.address,))
        targets = await find_targets(where, ["a"])
        plan = plan_of(LoadOptions(rate=ALL_AT_ONCE / 1e-4, seconds=1e-4), ("a",))
        outputs = ReportFiles(tmp_path / "report.json", None, progress=False)
        assert await carry_out(plan, targets, where, 1, outputs) == 2

    run_with_mesh(scenario, tmp_path / "models", tmp_path / "data", device=emulated_device(tmp_path), compact=True)
    assert "COULD NOT KEEP THE RATE" in capsys.readouterr().out
    (phase,) = json.loads((tmp_path / "report.json").read_text())["phases"]
    assert phase["n"] == phase["generator"]["scheduled"] == sum(o["n"] for o in phase["outcomes"].values())
    assert not phase["lateness"]["kept"]
