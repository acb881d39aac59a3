"""`gearmesh`: what an operator or a client does from a shell. Exit codes: docs/operations.md."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.completion import get_completion_inspect_parameters as know_shells
from typer.core import TyperCommand, TyperGroup

import gearmesh


class CommandEntry(NamedTuple):
    """Where a command is, and its line in --help, which is also the first of its own help."""

    module: str  # in gearmesh/cli
    attribute: str  # the Typer that holds it: `app`, or a group of commands
    line: str


COMMANDS = {  # {command: where it is}, in the order in which --help lists them
    "up": CommandEntry(
        "running", "app", "Runs the Procfile: starts again what dies, tells when the mesh is ready, ends all on Ctrl-C."
    ),
    "status": CommandEntry(
        "status",
        "app",
        "Shows the members of the mesh, what it serves, how requests fare, how well times are predicted.",
    ),
    "top": CommandEntry("status", "app", "Shows what `status` shows, live."),
    "logs": CommandEntry(
        "status",
        "app",
        "Sums up the request log and the action log: outcomes, latencies, how well times were predicted.",
    ),
    "metrics": CommandEntry("status", "app", "Prints the mesh's counters in the text format of Prometheus."),
    "trace": CommandEntry("status", "app", "Records what the running mesh plans and does, and writes a timeline."),
    "models": CommandEntry("models", "app", "Lists the deployed models, or shows one of them in detail."),
    "import": CommandEntry(
        "importing", "app", "Makes a package of an ONNX file, an exported program or a torch module that answers alike."
    ),
    "deploy": CommandEntry(
        "models", "app", "Prepares a version and makes it current once it is prepared; traffic goes on meanwhile."
    ),
    "undeploy": CommandEntry(
        "models", "app", "Takes no new requests for the model, and frees its memory once those in flight have ended."
    ),
    "rollback": CommandEntry("models", "app", "Makes the version that was current before this one current again."),
    "apps": CommandEntry(
        "applications", "applications", "Applications: several models behind one name, learning from feedback."
    ),
    "infer": CommandEntry("asking", "app", "Asks a model or an application once, and prints the answer."),
    "feedback": CommandEntry("asking", "app", "Tells an application how good its answer was."),
    "container": CommandEntry(
        "containers",
        "app",
        "Serves Python code as a model: one array per input, batch first; an array, a tuple or a dict back.",
    ),
    "scale": CommandEntry("containers", "app", "Has the running `gearmesh up` keep so many replicas of a container."),
    "load": CommandEntry(
        "load", "app", "Asks the models of a mesh at a given rate or with so many clients, and reports the outcome."
    ),
    "simulate": CommandEntry(
        "simulate", "app", "Runs the production scheduler on virtual time: how much of a load is answered in time?"
    ),
    "doctor": CommandEntry(
        "running", "app", "Examines this machine, the settings, the repository and the mesh, and says what to mend."
    ),
    "keys": CommandEntry(
        "keys", "app", "Makes, lists and revokes the keys that a mesh beyond loopback needs (GEARMESH_KEYS_DIR)."
    ),
    "completion": CommandEntry(
        "completing",
        "app",
        'Prints what teaches a shell to complete commands, options and names: eval "$(gearmesh completion bash)".',
    ),
}


class Commands(MutableMapping[str, Any]):
    """The commands by name. A command's module is imported when the command is asked for, and no other is."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, attribute, _ = COMMANDS[name]
            made: Any = typer.main.get_command(getattr(import_module(f"gearmesh.cli.{module}"), attribute))
            self._made[name] = made.commands[name] if attribute == "app" and hasattr(made, "commands") else made
            self._made[name].name = name
            _without_types(self._made[name])
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

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Lists the commands without importing any."""
        self.commands = _lines()
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands and options that begin so; imports no command."""
        self.commands = _lines()
        return super().shell_complete(ctx, incomplete)


def _lines() -> dict[str, Any]:
    """The commands by name, each its line and nothing more."""
    return {name: TyperCommand(name, help=place.line) for name, place in COMMANDS.items()}


def _without_types(command: Any) -> None:
    """Flags are shown in --help as flags, without the type <bool>."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _without_types(inner)


know_shells()  # typer then answers each shell in the way in which its script asks
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
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """DNN serving with predictable latency."""
    from gearmesh.cli.terminal.telling import want_json

    want_json(False)  # an earlier command of this process may have wanted it


def main() -> None:
    """Runs the command that the arguments name, and exits with its code; or offers a shell what completes a line."""
    app(prog_name="gearmesh")
