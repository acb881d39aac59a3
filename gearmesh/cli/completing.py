"""`gearmesh completion`, and what a shell offers at a tab: commands, options, names of models and applications."""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from gearmesh.cli.start import COMPLETE
from mesh.names import NAME

COMPLETED_WITHIN_S = 0.5  # a shell waits for the names; without a mesh, none is offered
app = typer.Typer(add_completion=False)


class Shell(StrEnum):
    """A shell that can be taught."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(ctx: typer.Context, shell: Annotated[Shell, typer.Argument(help="Which one runs the script.")]) -> None:
    """Prints what teaches a shell to complete commands, options and names: eval "$(gearmesh completion bash)"."""
    from typer.completion import shell_complete

    raise typer.Exit(shell_complete(ctx.find_root().command, {}, "gearmesh", COMPLETE, f"source_{shell}"))


def model_names(incomplete: str) -> list[str]:
    """Models that the mesh serves."""
    return _offered("models", lambda answer: answer["models"], incomplete)


def app_names(incomplete: str) -> list[str]:
    """Applications of the mesh."""
    return _offered("apps", lambda answer: answer["apps"], incomplete)


def asked_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `infer` may ask: applications after --app, else models."""
    return app_names(incomplete) if ctx.params.get("as_app") else model_names(incomplete)


def container_names(incomplete: str) -> list[str]:
    """Containers that this folder's `gearmesh up` keeps."""
    from gearmesh.operations.containers import ContainerFile
    from mesh.errors import GearmeshError
    from mesh.process.configuration import read_settings

    try:
        return _fitting(ContainerFile(read_settings().data_dir).read(), incomplete)
    except (GearmeshError, ValueError):
        return []


def _offered(op: str, found: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]], incomplete: str) -> list[str]:
    from frontend.client.client import Client, RequestError

    try:
        with Client() as session:
            answer = session.call(op, timeout_s=COMPLETED_WITHIN_S)
    except (ValueError, RequestError):  # a shell shows no errors at a tab
        return []
    return _fitting((str(entry["name"]) for entry in found(answer)), incomplete)


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    """Names that begin so. A shell evaluates what it is offered: no other text than a name is."""
    return [name for name in names if name.startswith(incomplete) and NAME.fullmatch(name)]
