"""The command line: mistakes, and meshes that are not there, end with a sentence and exit code 2."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scripts.cli import app
from scripts.containers import Roster
from scripts.meshes import free_ports


@pytest.fixture
def gearmesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """The command line in an empty folder, with settings that lead to no mesh."""
    monkeypatch.chdir(tmp_path)
    broker, frontend = free_ports(2)
    monkeypatch.setenv("GEARMESH_BROKER_PORT", str(broker))
    monkeypatch.setenv("GEARMESH_FRONTEND_PORT", str(frontend))
    return CliRunner()


def refused(runner: CliRunner, *arguments: str) -> str:
    """What the command said before it exited with 2."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_trace_never_overwrites_a_file_unless_told_to(gearmesh: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text("precious")
    assert "is there already; give another name, or --force" in refused(gearmesh, "trace", str(file))
    assert "no broker" in refused(gearmesh, "trace", str(file), "--force")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("seconds", ["0", "-1", "301", "nan"])
def test_a_trace_lasts_some_seconds(gearmesh: CliRunner, seconds: str) -> None:
    assert "--seconds must be above 0 and at most 300" in refused(gearmesh, "trace", "t.json", "--seconds", seconds)


def test_a_trace_needs_a_place(gearmesh: CliRunner, tmp_path: Path) -> None:
    assert "there is no folder" in refused(gearmesh, "trace", str(tmp_path / "nowhere" / "t.json"))
    assert "is a folder" in refused(gearmesh, "trace", str(tmp_path))


@pytest.mark.parametrize("command", [("status",), ("top", "-n", "1"), ("metrics",), ("trace", "t.json")])
def test_without_a_mesh_each_says_where_it_looked(gearmesh: CliRunner, command: tuple[str, ...]) -> None:
    assert "is the mesh up? (gearmesh up)" in refused(gearmesh, *command)


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
def test_without_a_mesh_a_question_ends_soon(
    gearmesh: CliRunner, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.cli.ANSWERS_WITHIN_S", 0.1)
    assert "is the mesh up? (gearmesh up)" in refused(gearmesh, *command)


@pytest.mark.parametrize("command", [("status",), ("models",), ("deploy", "m"), ("doctor",)])
def test_keys_that_cannot_be_used_are_a_wrong_setting(
    gearmesh: CliRunner, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMESH_KEYS_DIR", "nowhere")
    assert "keys_dir=nowhere: no usable keys there" in refused(gearmesh, *command)


def test_a_context_belongs_to_an_application(gearmesh: CliRunner) -> None:
    assert "--context goes with --app" in refused(gearmesh, "infer", "m", "[1]", "--context", "ann")


def test_without_a_procfile_it_is_said_where_to_go(gearmesh: CliRunner) -> None:
    assert "run it from gearmesh's folder, or name one with --procfile" in refused(gearmesh, "up")


def test_a_damaged_list_of_containers_is_named(gearmesh: CliRunner, tmp_path: Path) -> None:
    roster = Roster(tmp_path / ".gearmesh")
    with roster.watched():
        (tmp_path / ".gearmesh" / "containers.json").write_text("junk")
        result = gearmesh.invoke(app, ("scale", "m", "1"))
    assert result.exit_code == 1
    assert "containers.json: JSON is malformed" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("top", "--interval", "0"), "--interval"),
        (("top", "-n", "-1"), "--count"),
        (("status", "--over", "-1"), "--over"),
    ],
)
def test_numbers_out_of_range_are_refused(gearmesh: CliRunner, arguments: tuple[str, ...], key: str) -> None:
    assert f"{key} must be" in refused(gearmesh, *arguments)
