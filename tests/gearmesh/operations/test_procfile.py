"""gearmesh/operations/supervisor.py: the processes that a Procfile's lines become, and the ports of further ones."""

from pathlib import Path

import pytest

from gearmesh.operations.supervisor import procfile_commands
from scripts import ROOT
from tests.gearmesh.operations.supervised import heard, running
from tests.loops import on_loop
from tests.messages import names

pytestmark = pytest.mark.usefixtures("hurried")
PROCFILE = "broker: run broker\ncontroller: run controller\ngpu_worker: run gpu_worker --x=1\nfrontend: run frontend\n"


@pytest.fixture
def procfile(tmp_path: Path) -> Path:
    """Four services, as in the project's own Procfile."""
    (tmp_path / "Procfile").write_text(PROCFILE)
    return tmp_path / "Procfile"


# -- the Procfile -----------------------------------------------------------------------------------------------------


def test_every_line_is_one_process(procfile: Path) -> None:
    assert procfile_commands(procfile, {}) == {
        "broker": ("run broker", 0),
        "controller": ("run controller", 0),
        "gpu_worker": ("run gpu_worker --x=1", 0),
        "frontend": ("run frontend", 0),
    }


@pytest.mark.parametrize("text", ["a: x\nb: y\na: z\n", "a: x\n\n# a: no\na:z\n", "a: x\na: x\na: x\n"])
def test_a_name_that_several_processes_have_is_named_with_its_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(ValueError, match="Procfile") as raised:
        procfile_commands(tmp_path / "Procfile", {})
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("a:")]
    assert names(str(raised.value), "'a'", *lines)


def test_the_projects_own_procfile_starts_the_four_services_and_the_gateway() -> None:
    commands = procfile_commands(ROOT / "Procfile", {})
    assert list(commands) == ["broker", "controller", "gpu_worker", "frontend", "gateway"]
    modules = {name: name for name in commands} | {"gateway": "frontend.gateway"}
    assert all(
        command.startswith("exec ") and command.endswith(f"-m {modules[name]}")
        for name, (command, _) in commands.items()
    )


def test_compact_leaves_the_gateway_a_process_of_its_own() -> None:
    commands = procfile_commands(ROOT / "Procfile", {}, compact=True)
    assert list(commands) == ["mesh", "gpu_worker", "gateway"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [("gpu_worker", 0)]),
        (2, [("gpu_worker.1", 0), ("gpu_worker.2", 1)]),
        (3, [("gpu_worker.1", 0), ("gpu_worker.2", 1), ("gpu_worker.3", 2)]),
    ],
)
def test_a_formation_says_how_many_of_a_process(procfile: Path, count: int, expected: list[tuple[str, int]]) -> None:
    commands = procfile_commands(procfile, {"gpu_worker": count})
    workers = [(name, instance) for name, (_, instance) in commands.items() if name.startswith("gpu_worker")]
    assert workers == expected
    assert len(commands) == 3 + count


def test_a_process_that_is_not_in_the_procfile_is_refused_with_those_that_are(procfile: Path) -> None:
    with pytest.raises(ValueError, match=r"worker, x.*broker, controller, gpu_worker, frontend"):
        procfile_commands(procfile, {"worker": 2, "broker": 1, "x": 1})


def test_compact_puts_the_front_into_one_process_ahead_of_the_workers(procfile: Path) -> None:
    commands = procfile_commands(procfile, {"gpu_worker": 2}, compact=True)
    assert list(commands) == ["mesh", "gpu_worker.1", "gpu_worker.2"]
    assert commands["mesh"][0].endswith("-m gearmesh.operations.compact")


def test_several_of_what_compact_puts_into_one_process_are_refused(procfile: Path) -> None:
    with pytest.raises(ValueError, match="frontend"):
        procfile_commands(procfile, {"frontend": 2}, compact=True)


def test_comments_and_blank_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("# a comment\n\nbroker: run: it\n  \nnot a line\n")
    assert procfile_commands(tmp_path / "Procfile", {}) == {"broker": ("run: it", 0)}


def test_a_procfile_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Procfile"):
        procfile_commands(tmp_path / "Procfile", {})


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_procfile_without_processes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(ValueError, match="Procfile"):
        procfile_commands(tmp_path / "Procfile", {})


# -- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "instance", "base", "expected"),
    [
        ("frontend", 0, {}, ""),
        ("frontend.2", 1, {}, "5556"),
        ("frontend.3", 2, {"GEARMESH_FRONTEND_PORT": "7000"}, "7002"),
        ("frontend.2", 1, {"GEARMESH_FRONTEND_PORT": "0"}, "0"),  # any free port for each instance
        ("frontend", 0, {"GEARMESH_FRONTEND_PORT": "7000"}, "7000"),
        ("gpu_worker.2", 1, {"GEARMESH_FRONTEND_PORT": "7000"}, "7000"),
    ],
)
@on_loop
async def test_further_frontends_have_the_ports_that_follow(
    name: str, instance: int, base: dict[str, str], expected: str
) -> None:
    async with running({name: ("echo port=$GEARMESH_FRONTEND_PORT; exec sleep 6000", instance)}, base) as (_, said):
        await heard(said, (name, f"port={expected}"))


@on_loop
async def test_further_controllers_have_the_ports_that_follow() -> None:
    command = "echo port=$GEARMESH_CONTROLLER_PORT $GEARMESH_BROKER_PORT; exec sleep 6000"
    async with running({"controller.2": (command, 1)}, {"GEARMESH_BROKER_PORT": "7000"}) as (_, said):
        await heard(said, ("controller.2", "port=5561 7000"))


@on_loop
async def test_further_gateways_have_the_ports_that_follow() -> None:
    command = "echo port=$GEARMESH_HTTP_PORT; exec sleep 6000"
    async with running({"gateway.2": (command, 1)}) as (_, said):
        await heard(said, ("gateway.2", "port=8001"))
