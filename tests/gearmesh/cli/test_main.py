"""gearmesh/cli/main.py and start.py: the options of every command, and the extra that each needs."""

import pytest
from typer.testing import CliRunner

import gearmesh
from gearmesh.cli.main import COMMANDS, app
from gearmesh.cli.start import NEEDS
from mesh.process.extras import EXTRAS


@pytest.mark.parametrize("command", [(), ("status",), ("apps",), ("apps", "create")])
def test_help_has_a_short_name(command: tuple[str, ...]) -> None:
    short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)


def test_the_version_is_that_of_the_package() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output.split()) == (0, ["gearmesh", gearmesh.__version__])


def test_commands_that_need_more_than_the_others_are_commands_and_need_an_extra() -> None:
    assert NEEDS.keys() < COMMANDS.keys()
    assert set(NEEDS.values()) < {extra for bringing in EXTRAS.values() for extra in bringing}
