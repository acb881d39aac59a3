"""gearmesh/operations/doctor.py: its findings about the model repository."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from gearmesh.operations.doctor import examine_descriptors, examine_repository, examine_status, form_finding
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.export import write_package
from mesh import wire
from mesh.process.compiled import Form, Why
from mesh.process.descriptors import KEPT
from mesh.process.settings import Settings
from tests.loops import on_loop
from tests.mesh.net.brokers import SPEC, Broker, Caller
from tests.mesh.net.processes import processes


@on_loop
async def test_files_that_are_not_those_that_are_served_are_to_be_mended(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    torch.manual_seed(1)
    package = write_package(repository, "m", "1", nn.Linear(4, 3), inputs={"x": ("float32", (4,))}, outputs=["y"])
    async with processes() as made:
        broker = Broker(made, tmp_path)
        controller = Caller(made.runtime(), broker.addresses, "controller-1")
        controller.register("controller")
        content = ContentDigests().of(package)
        controller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC, content=content))
        await controller.table(lambda table: table.models and table.models[0].current == "1")
        settings = Settings(model_repository=repository, broker_port=broker.number, data_dir=tmp_path / "data")

        async def findings() -> list[tuple[str, str]]:
            found = await asyncio.to_thread(lambda: list(examine_repository(settings)))
            return [(grade, what) for grade, what, _ in found]

        assert await findings() == [("good", "m:1")]
        torch.manual_seed(2)
        other = write_package(
            tmp_path / "other", "m", "1", nn.Linear(4, 3), inputs={"x": ("float32", (4,))}, outputs=["y"]
        )
        other.weights_file.rename(package.weights_file)
        assert await findings() == [("bad", "m:1")]
        package.weights_file.write_bytes(b"junk")
        assert await findings() == [("bad", "m:1")]
        broker.stop()
    assert await findings() == [("bad", "m:1")]


@on_loop
async def test_versions_that_are_not_current_other_folders_and_containers_names_are_looked_at_too(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repository"
    written = {}
    for version in ("1", "2"):
        torch.manual_seed(int(version))
        linear, inputs = nn.Linear(4, 3), {"x": ("float32", (4,))}
        written[version] = write_package(repository, "m", version, linear, inputs=inputs, outputs=["y"])
    async with processes() as made:
        broker = Broker(made, tmp_path)
        controller = Caller(made.runtime(), broker.addresses, "controller-1")
        controller.register("controller")
        for call, version in enumerate(("2", "1")):
            controller.link.send(wire.Deploy(call=call, name="m", version=version))
            content = ContentDigests().of(written[version])
            controller.link.send(wire.PrepareReport(ref=f"m:{version}", ok=True, spec=SPEC, content=content))
            await controller.table(lambda table, version=version: table.models[0].current == version)
        assert (await controller.ask(wire.ClaimVersion(call=9, name="c", content="abc"))).ok
        settings = Settings(model_repository=repository, broker_port=broker.number, data_dir=tmp_path / "data")

        async def findings(settings: Settings) -> list[tuple[str, str]]:
            found = await asyncio.to_thread(lambda: list(examine_repository(settings)))
            return [(grade, what) for grade, what, _ in found]

        assert await findings(settings) == [("good", "m:1"), ("good", "m:2")]
        (repository / "m" / "3").mkdir()
        (repository / "c").mkdir()
        (repository / "c" / "model.toml").write_text("")
        shutil.copy(written["1"].weights_file, written["2"].weights_file)
        expected = [("bad", "c"), ("bad", "m:3"), ("good", "m:1"), ("bad", "m:2")]
        assert await findings(settings) == expected
        shutil.copytree(repository / "m", tmp_path / "another" / "m")
        another = settings.model_copy(update={"model_repository": tmp_path / "another"})
        assert await findings(another) == [("note", "model repository"), *expected]
        broker.stop()


def test_an_empty_repository_is_no_fault(tmp_path: Path) -> None:
    (found,) = examine_repository(Settings(model_repository=tmp_path))
    assert found[0] == "note"
    assert str(tmp_path) in found[2]
    assert "scripts/" not in found[2]  # a wheel has none


@pytest.mark.parametrize(("most", "grade"), [(1024, "note"), (9999 + KEPT, "note"), (10_000 + KEPT, "good")])
def test_fewer_descriptors_than_requests_at_once_are_noted_with_what_to_raise(most: int, grade: str) -> None:
    told, what, how = examine_descriptors(Settings(in_flight_max=10_000), most)
    assert (told, what) == (grade, "file descriptors")
    assert str(most) in how
    assert ("ulimit -n" in how and "GEARMESH_IN_FLIGHT_MAX" in how) == (grade == "note")


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, []),
        ({"controllers": {"controller-1": 0.2}, "accept_failed": 0}, []),
        ({"controllers": {"controller-1": 7.0}}, ["controller"]),
        ({"controllers": {"controller-1": None}}, ["controller"]),
        ({"accept_failed": 3}, ["file descriptors"]),
        ({"epoch": None}, ["broker"]),
    ],
)
def test_what_a_frontend_tells_of_and_somebody_has_to_mend_is_said(told: dict[str, object], found: list[str]) -> None:
    status = {"frontend": "frontend-1", "epoch": 5, **told}
    assert [(grade, what) for grade, what, _ in examine_status(status)] == [("bad", what) for what in found]


def test_for_whatever_reason_code_runs_interpreted_something_else_is_said_of_it() -> None:
    whys = [why for why in Why if why is not Why.MATCHES]
    findings = [form_finding(Form(False, why)) for why in whys]
    assert {grade for grade, _, _ in findings} == {"note"}
    assert len({how for _, _, how in findings}) == len(whys)
    assert "pip install again with GEARMESH_PURE=0" in form_finding(Form(False, Why.FAILED))[2]
