"""The command itself: what --help lists, and that listing imports no command."""

import subprocess
import sys

import pytest
import typer

from gearmesh.cli.main import COMMANDS, app

HELP = "import sys; sys.argv = ['gearmesh', '--help']; from gearmesh.cli.start import main"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_the_list_is_the_first_of_the_commands_own_help(name: str) -> None:
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name].line
    assert command.name == name


def test_listing_the_commands_imports_none_of_them() -> None:
    script = f"{HELP}\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert not {"numpy", "zmq", "pydantic", "msgspec", "gearmesh.cli.models"} & imported
    assert all(name in done.stdout for name in COMMANDS)
