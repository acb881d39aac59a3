"""gearmesh/operations/up.py: checks before a mesh starts."""

import ast
import asyncio
import io
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gearmesh.operations import up
from gearmesh.operations.supervisor import OURS, PROCFILE, procfile_commands
from gearmesh.operations.up import ports_taken, printer, procfile_of, ready_line, wait_ready, with_ports
from mesh.process.settings import Settings
from scripts import ROOT
from scripts.rigs.house import PRODUCT
from tests.loops import on_loop


def test_free_ports_are_no_hindrance() -> None:
    settings = Settings(broker_port=0, controller_port=0, frontend_port=0)
    assert ports_taken(settings, ["broker", "controller", "frontend", "gpu_worker"]) == ""


@pytest.mark.parametrize("processes", [["broker", "gpu_worker", "frontend.1", "frontend.2"], ["mesh", "gpu_worker"]])
def test_every_port_that_another_mesh_holds_is_told_with_its_setting(processes: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker, socket.create_server(("127.0.0.1", 0)) as frontend:
        ports = [sock.getsockname()[1] for sock in (broker, frontend)]
        settings = Settings(broker_port=ports[0], controller_port=0, frontend_port=ports[1])
        faults = ports_taken(settings, processes).splitlines()
    assert len(faults) == 2
    for fault, port, setting in zip(faults, ports, ("GEARMESH_BROKER_PORT", "GEARMESH_FRONTEND_PORT"), strict=True):
        assert f"tcp://127.0.0.1:{port}" in fault
        assert setting in fault


def test_the_port_of_a_service_that_does_not_run_here_is_nobodys_business() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        settings = Settings(broker_port=broker.getsockname()[1], controller_port=0, frontend_port=0)
        assert ports_taken(settings, ["gpu_worker", "frontend"]) == ""


def test_further_instances_follow_on_from_the_ports_that_a_file_sets() -> None:
    found = with_ports(Settings(frontend_port=7000, controller_port=0), {"PATH": "/bin", "GEARMESH_HTTP_PORT": "1"})
    assert found == {
        "PATH": "/bin",
        "GEARMESH_FRONTEND_PORT": "7000",
        "GEARMESH_CONTROLLER_PORT": "0",
        "GEARMESH_HTTP_PORT": "8000",
    }


def model(**what: Any) -> Mapping[str, Any]:
    """A frontend's description of a model."""
    return {"name": "m", "version": "1", "ready": False, "preparing": None, "fault": None, **what}


class Frontend:
    """Reports one list of models after the other, and the last one from then on."""

    def __init__(self, *models: list[Mapping[str, Any]]) -> None:
        self.left = list(models)

    async def models(self) -> list[Mapping[str, Any]]:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.mark.parametrize(
    ("models", "ready"),
    [
        ([], []),
        ([model(ready=True)], ["m"]),
        ([model(fault="no graph")], []),
        ([model(version=None)], []),  # a package without a version
        ([model(fault="no container serves it at the moment"), model(name="n", ready=True)], ["n"]),
    ],
)
def test_a_mesh_is_ready_when_nothing_is_on_its_way(
    models: list[Mapping[str, Any]], ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearmesh.operations.up.POLL_S", 0.0)
    coming = [[model()], [model(version=None, preparing="1")], [model(fault="no graph", preparing="2")]]
    session: Any = Frontend(*coming, models)
    assert asyncio.run(wait_ready(session, lambda done, names: None)) == ready
    assert session.left == [models]


def test_the_working_folders_procfile_goes_before_the_one_that_comes_with_gearmesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert procfile_of(None) == (PROCFILE, "")
    (tmp_path / "Procfile").write_text("web: theirs\nbroker: mine\n")
    chosen, told = procfile_of(None)
    assert (chosen.read_text(), told) == ("web: theirs\nbroker: mine\n", "")
    assert procfile_of(Path("other")) == (Path("other"), "")


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_procfile_with_one_process_of_a_mesh_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Procfile").write_text(f"{name}: mine\n")
    assert procfile_of(None) == (Path("Procfile"), "")


@pytest.mark.parametrize("text", ["web: python -m http.server\nworker: x\n", "# nothing\n"])
def test_a_procfile_of_something_else_is_not_run_unless_it_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Procfile").write_text(text)
    chosen, told = procfile_of(None)
    assert chosen == PROCFILE
    assert str(tmp_path / "Procfile") in told
    assert "\n" not in told
    assert procfile_of(Path("Procfile")) == (Path("Procfile"), "")


def test_a_mesh_without_models_names_the_folder_where_it_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(model_repository=Path("models"))
    assert str(tmp_path / "models") in ready_line(settings, [], 1.0, http=False)
    assert str(tmp_path / "models") not in ready_line(settings, ["m"], 1.0, http=False)


def test_the_procfile_inside_runs_what_the_projects_own_runs() -> None:
    inside, own = (procfile_commands(file, {}) for file in (PROCFILE, ROOT / "Procfile"))
    modules = [{name: command.partition("}")[2] for name, (command, _) in found.items()} for found in (inside, own)]
    assert modules[0] == modules[1]
    assert all(" -P -m " in command for command in modules[0].values())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_of_a_process_that_came_later_is_printed_like_any_other(terminal: bool) -> None:
    printed = io.StringIO()
    say = printer(Console(file=printed, force_terminal=terminal, width=80), ["broker"])
    say("broker", "one")
    say("f.1", "two")
    lines = printed.getvalue().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["one", "two"]
    assert "f.1" in lines[1]


def test_nothing_of_ours_is_started_so_that_the_working_folder_could_take_its_place() -> None:
    found = []
    for path in (path for top in PRODUCT for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple | ast.Call):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                words = [getattr(part, "value", None) for part in parts]
                found += [str(path) for at, word in enumerate(words[1:], 1) if word == "-m" and words[at - 1] != "-P"]
    assert [path for path in found if not path.endswith("cli/load.py")] == []


@on_loop
async def test_what_gearmesh_up_does_beside_supervising_begins_anew_if_it_fails_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(up, "AGAIN_S", 0.0)
    tries: list[int] = []
    said: list[tuple[str, str]] = []

    async def work() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ZeroDivisionError(f"try {len(tries)}")

    await up.again_and_again(lambda name, line: said.append((name, line)), work)
    assert len(tries) == 3
    assert [line for _, line in said if line.startswith("ZeroDivisionError")] == [
        f"ZeroDivisionError: try {i}" for i in (1, 2)
    ]
    assert {name for name, _ in said} == {"up"}
