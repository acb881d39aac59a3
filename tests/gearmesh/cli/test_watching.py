"""The command line: wrong arguments and missing meshes end with a message and exit code 2."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearmesh.cli.main import app
from gearmesh.operations.containers import ContainerFile
from gearmesh.operations.ports import free_ports
from mesh.process.configuration import read_settings
from tests.messages import names


@pytest.fixture
def ports() -> list[int]:
    """Ports for a broker and a frontend; nobody listens on them."""
    return free_ports(2)


@pytest.fixture
def gearmesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ports: list[int]) -> CliRunner:
    """The command line in an empty folder; its settings name no mesh, and it notices soon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEARMESH_BROKER_PORT", str(ports[0]))
    monkeypatch.setenv("GEARMESH_FRONTEND_PORT", str(ports[1]))
    monkeypatch.setattr("gearmesh.cli.terminal.session.REACHED_WITHIN_S", 0.1)
    monkeypatch.setattr("gearmesh.cli.terminal.session.ANSWERS_WITHIN_S", 0.2)
    monkeypatch.setattr("frontend.admin.observer.REPLY_S_MAX", 0.1)
    return CliRunner()


def refused(runner: CliRunner, *arguments: str) -> str:
    """The command's message before it exits with 2."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_trace_never_overwrites_a_file_unless_told_to(gearmesh: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text("precious")
    assert "--force" in refused(gearmesh, "trace", str(file))
    assert "--force" not in refused(gearmesh, "trace", str(file), "--force")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("seconds", ["0", "-1", "301", "nan"])
def test_a_trace_lasts_some_seconds(gearmesh: CliRunner, seconds: str) -> None:
    assert names(refused(gearmesh, "trace", "t.json", "--seconds", seconds), "--seconds", 0, 300)


def test_a_trace_needs_a_place(gearmesh: CliRunner, tmp_path: Path) -> None:
    assert "nowhere" in refused(gearmesh, "trace", str(tmp_path / "nowhere" / "t.json"))
    assert tmp_path.name in refused(gearmesh, "trace", str(tmp_path))


@pytest.mark.parametrize("command", [("status",), ("top", "-n", "1"), ("metrics",), ("trace", "t.json")])
def test_without_a_mesh_each_says_where_it_looked(
    gearmesh: CliRunner, command: tuple[str, ...], ports: list[int]
) -> None:
    assert names(refused(gearmesh, *command), ports[0], "gearmesh up")


@pytest.mark.parametrize(
    "command",
    [
        ("models",),
        ("infer", "m", "[1]"),
        ("apps",),
        ("apps", "delete", "a"),
        ("feedback", "d", "--loss", "1"),
        ("deploy", "m"),
    ],
)
def test_without_a_mesh_a_question_ends_and_says_how_to_start_one(
    gearmesh: CliRunner, command: tuple[str, ...]
) -> None:
    assert "gearmesh up" in refused(gearmesh, *command)


@pytest.mark.parametrize("command", [("status",), ("models",), ("deploy", "m"), ("doctor",)])
def test_keys_that_cannot_be_used_are_a_wrong_setting(
    gearmesh: CliRunner, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMESH_KEYS_DIR", "nowhere")
    assert "keys_dir=nowhere" in refused(gearmesh, *command)


def test_a_context_belongs_to_an_application(gearmesh: CliRunner) -> None:
    assert names(refused(gearmesh, "infer", "m", "[1]", "--context", "ann"), "--context", "--app")


def test_a_procfile_that_is_not_there_is_named(gearmesh: CliRunner) -> None:
    assert names(refused(gearmesh, "up", "--procfile", "nowhere"), "nowhere", "--procfile")


def test_a_damaged_list_of_containers_is_named(gearmesh: CliRunner, tmp_path: Path) -> None:
    container_file = ContainerFile(tmp_path / ".gearmesh")
    with container_file.watched():
        (tmp_path / ".gearmesh" / "containers.json").write_text("junk")
        result = gearmesh.invoke(app, ("scale", "m", "1"))
    assert result.exit_code == 1
    assert "containers.json" in "".join(result.output.split())


def test_a_container_is_not_given_to_another_mesh_than_the_data_folder_s(gearmesh: CliRunner, tmp_path: Path) -> None:
    theirs = "tcp://127.0.0.1:9"
    with ContainerFile(tmp_path / ".gearmesh").watched(theirs):
        told = refused(gearmesh, "container", "--model", "m", "--predict", "nowhere:f", "--replicas", "1")
    assert names(told, theirs, read_settings().broker_address, "GEARMESH_CONFIG")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("top", "--interval", "0"), "--interval"),
        (("top", "-n", "-1"), "--count"),
        (("status", "--over", "-1"), "--over"),
    ],
)
def test_numbers_out_of_range_are_refused(gearmesh: CliRunner, arguments: tuple[str, ...], key: str) -> None:
    assert key in refused(gearmesh, *arguments)
