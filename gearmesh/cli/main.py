"""`gearmesh`: what an operator or a client does from a shell. Exit codes: docs/operations.md."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import gearmesh

COMMANDS = {  # {command: (module, what in it the command is)}, in the order in which --help lists them
    "up": ("running", "app"),
    "status": ("status", "app"),
    "top": ("status", "app"),
    "logs": ("status", "app"),
    "metrics": ("status", "app"),
    "trace": ("status", "app"),
    "models": ("models", "app"),
    "import": ("importing", "app"),
    "deploy": ("models", "app"),
    "undeploy": ("models", "app"),
    "rollback": ("models", "app"),
    "apps": ("applications", "applications"),
    "infer": ("asking", "app"),
    "feedback": ("asking", "app"),
    "container": ("containers", "app"),
    "scale": ("containers", "app"),
    "load": ("load", "app"),
    "simulate": ("simulate", "app"),
    "doctor": ("running", "app"),
    "keys": ("running", "app"),
}


class Commands(MutableMapping[str, Any]):
    """The commands by name. A command's module is imported when the command is asked for, and no other is."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, attribute = COMMANDS[name]
            made: Any = typer.main.get_command(getattr(import_module(f"gearmesh.cli.{module}"), attribute))
            self._made[name] = made.commands[name] if attribute == "app" and hasattr(made, "commands") else made
            self._made[name].name = name
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Gearmesh(TyperGroup):
    """The group of all commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = Commands()


app = typer.Typer(
    cls=Gearmesh,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="DNN serving with predictable latency.",
)


def _version(asked: bool) -> None:
    """Prints the version and exits 0 if it is asked for."""
    if asked:
        print(f"gearmesh {gearmesh.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """DNN serving with predictable latency."""


def main() -> None:
    """Runs the command that the arguments name, and exits with its code."""
    app()
