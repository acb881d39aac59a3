"""`gearmesh keys`: a mesh's folder, a folder for each, the list and revocation."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from frontend.client.defaults import read_keys
from gearmesh.cli.main import app
from mesh.net.keys import Keys
from mesh.roles import ALL_ROLES


def run(*words: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["keys", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def listed(folder: Path) -> dict[str, list[str]]:
    code, out, _ = run(folder, "--list", "--json")
    assert code == 0
    return {key["name"]: key["roles"] for key in json.loads(out)["keys"]}


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert run(folder)[0] == 0
    assert listed(folder) == {"mesh": sorted(ALL_ROLES), "client": ["client"]}
    code, out, _ = run(folder, "--role", "client", "--name", "alice")
    assert (code, str(folder / "alice") in out) == (0, True)
    code, out, _ = run(folder, "--role", "worker", "--role", "operator", "--name", "box", "--json")
    assert json.loads(out) == {"folder": str(folder / "box"), "name": "box", "roles": ["operator", "worker"]}
    assert listed(folder) == {
        "mesh": sorted(ALL_ROLES), "client": ["client"], "alice": ["client"], "box": ["operator", "worker"]
    }  # fmt: skip
    assert run(folder, "--revoke", "alice")[0] == 0
    assert "alice" not in listed(folder)


def test_a_folder_for_one_serves_services_commands_and_clients(tmp_path: Path) -> None:
    run(tmp_path / "keys")
    run(tmp_path / "keys", "--role", "client", "--name", "alice")
    own = Keys.read(tmp_path / "keys" / "alice")
    assert own.for_clients == read_keys(tmp_path / "keys" / "alice") == (own.server, own.public, own.secret)
    assert own.server == Keys.read(tmp_path / "keys").public


def test_who_gets_a_key_that_listens_is_told_what_its_ports_need(tmp_path: Path) -> None:
    run(tmp_path / "keys")
    _, out, _ = run(tmp_path / "keys", "--role", "frontend", "--name", "fe")
    assert "mesh.key_secret" in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "File exists"),
        (("--role", "client"), "--name"),
        (("--name", "x"), "--role"),
        (("--role", "boss", "--name", "x"), "boss"),
        (("--role", "client", "--name", "../x"), "--name"),
        (("--role", "client", "--name", "client"), "--name"),
        (("--role", "client", "--name", "taken"), "revoke it first"),
        (("--list", "--revoke", "taken"), "one at a time"),
        (("--revoke", "nobody"), "taken"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    folder = tmp_path / "keys"
    run(folder)
    run(folder, "--role", "worker", "--name", "taken")
    before = listed(folder)
    code, out, err = run(folder, *words)
    assert (code, out) == (2, "")
    assert named in err
    assert listed(folder) == before


def test_a_folder_that_holds_no_keys_is_named(tmp_path: Path) -> None:
    for words in (("--list",), ("--role", "client", "--name", "alice"), ("--revoke", "alice")):
        code, _, err = run(tmp_path, *words)
        assert (code, str(tmp_path) in err) == (2, True)
