"""What every command has in common: -h, --json as a flag, and how it ends where no mesh is."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gearmesh.cli.completing import Shell
from gearmesh.cli.main import app
from gearmesh.cli.terminal.telling import tell, want_json
from gearmesh.operations.ports import free_ports
from tests.frontend.client.fakes import Answer, Asked, FakeFrontend
from tests.loops import LIMIT_S
from tests.messages import names

UNREACHED = (  # where no mesh is up
    ("status",), ("trace", "t.json"), ("models",), ("models", "m"), ("deploy", "m"), ("undeploy", "m"),
    ("rollback", "m"), ("apps",), ("apps", "create", "a", "m"), ("apps", "update", "a"), ("apps", "delete", "a"),
    ("infer", "m", "[1]"), ("feedback", "d", "--loss", "1"),
)  # fmt: skip
REFUSED = (
    ("logs", "nowhere"), ("scale", "m", "1"), ("import", "nowhere.onnx"), ("infer", "m", "[1]", "--context", "x"),
)  # fmt: skip


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (words, command) of every command, and of the groups."""

    def visit(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit(inner, (*words, name))

    return visit(typer.main.get_command(app), ())


COMMANDS = dict(commands())
WITH_JSON = {
    words
    for words, command in COMMANDS.items()
    if any("--json" in parameter.opts and parameter.is_flag for parameter in command.params)
}


@pytest.fixture
def gearmesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """The command line in an empty folder, where no mesh is up, with little patience."""
    monkeypatch.chdir(tmp_path)
    for name, port in zip(("BROKER", "FRONTEND"), free_ports(2), strict=True):
        monkeypatch.setenv(f"GEARMESH_{name}_PORT", str(port))
    monkeypatch.setattr("gearmesh.cli.terminal.session.REACHED_WITHIN_S", 0.05)
    monkeypatch.setattr("frontend.admin.observer.REPLY_S_MAX", 0.05)
    monkeypatch.setattr("frontend.admin.operator.TOLD_WITHIN_S", 0.05)
    return CliRunner()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(words: tuple[str, ...], option: str) -> None:
    result = CliRunner().invoke(app, (*words, option), env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert COMMANDS[words].help.split("\n")[0][:60] in result.output
    lines = [line for line in result.output.splitlines() if "--json" in line and words in WITH_JSON]
    assert not any("<bool>" in line or "--no-json" in line for line in lines)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_told(option: str) -> None:
    result = CliRunner().invoke(app, option)
    assert (result.exit_code, result.output.split()[0]) == (0, "gearmesh")


def test_every_command_of_facts_is_tried() -> None:
    tried = {words for words in WITH_JSON for given in (*UNREACHED, *REFUSED) if given[: len(words)] == words}
    assert WITH_JSON - tried == {("doctor",), ("keys",)}


@pytest.mark.parametrize("words", [*UNREACHED, *REFUSED], ids=" ".join)
def test_with_json_an_error_is_one_document_on_standard_error(gearmesh: CliRunner, words: tuple[str, ...]) -> None:
    result = gearmesh.invoke(app, (*words, "--json"))
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error.keys() == {"message", "code", "faults"}
    plain = gearmesh.invoke(app, words, env={"COLUMNS": "400"})
    assert (plain.exit_code, plain.stdout) == (result.exit_code, "")
    assert names(plain.stderr, *error["message"].splitlines())


def test_somebody_who_listens_and_is_no_frontend_is_told_from_nobody(
    gearmesh: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearmesh.cli.terminal.session.ANSWERS_WITHIN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("GEARMESH_FRONTEND_PORT", str(other.getsockname()[1]))
        told = gearmesh.invoke(app, ("models",), env={"COLUMNS": "400"}).stderr
    assert names(told, "GEARMESH_KEYS_DIR", "doctor")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"x": float("-inf")}]])
def test_a_document_is_json_though_numbers_are_not_finite(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    want_json(True)
    try:
        tell({"value": value})
    finally:
        want_json(False)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["value"] in (None, [{"x": None}])


def test_one_command_s_json_is_not_the_next_one_s(gearmesh: CliRunner) -> None:
    gearmesh.invoke(app, ("models", "--json"))
    assert not gearmesh.invoke(app, ("models",)).stderr.startswith("{")


@pytest.mark.parametrize("words", [("doctor",), ("keys", "folder")])
def test_what_needs_no_mesh_is_told_as_a_document(gearmesh: CliRunner, words: tuple[str, ...]) -> None:
    result = gearmesh.invoke(app, (*words, "--json"))
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def completed(*words: str) -> list[str]:
    """What bash is offered in place of the last word."""
    environment = {"_GEARMESH_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(
        app, (), prog_name="gearmesh", env={**environment, "COMP_WORDS": " ".join(("gearmesh", *words))}
    )
    assert result.exit_code == 0, result.output
    return result.output.split()


@pytest.mark.parametrize("shell", Shell)
def test_a_shell_is_given_a_script(shell: Shell) -> None:
    result = CliRunner().invoke(app, ("completion", shell))
    assert (result.exit_code, names(result.output, "_GEARMESH_COMPLETE", "gearmesh")) == (0, True)


def test_commands_and_options_are_completed_and_names_are_not_where_no_mesh_is(gearmesh: CliRunner) -> None:
    assert completed("de") == ["deploy"]
    assert completed("apps", "cr") == ["create"]
    assert completed("models", "--j") == ["--json"]
    assert completed("undeploy", "") == []
    assert completed("scale", "") == []


def test_a_shell_is_offered_nothing_that_it_would_take_for_a_command(
    gearmesh: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearmesh.cli.completing.COMPLETED_WITHIN_S", LIMIT_S)
    offered = ["good", "$(touch x)", "`touch x`", "x;y", "two words", "x\ny", "x'y", 'x"y', ""]

    def answer(asked: Asked) -> list[Answer]:
        named = [{"name": name} for name in offered]
        return [({"id": asked.id, "status": "ok", "models": named, "apps": named}, [])]

    with FakeFrontend(answer) as frontend:
        monkeypatch.setenv("GEARMESH_FRONTEND_PORT", frontend.address.rpartition(":")[2])
        assert completed("undeploy", "") == completed("apps", "delete", "") == ["good"]
        assert completed("undeploy", "x") == []
