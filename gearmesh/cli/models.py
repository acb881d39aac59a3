"""`gearmesh models`, `deploy`, `undeploy` and `rollback`."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from frontend.client.client import RequestError
from gearmesh.cli.terminal.calls import WaitingLines, operator_of, refused
from gearmesh.cli.terminal.session import client, err, out, settings
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.settings import Settings

app = typer.Typer(add_completion=False)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="As the frontend sent it.")] = False) -> None:
    """Lists the deployed models."""
    with client(settings()) as session:
        try:
            found = session.models()
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        out.print(models_table(found))


def models_table(found: list[dict[str, Any]]) -> Table:
    table = Table("model", "version", "ready", "inputs", "outputs", "largest batch", "slo ms", "note")
    table.columns[0].no_wrap = True
    for model in found:
        note = model["fault"] or (f"preparing version {model['preparing']}" if model["preparing"] else "")
        table.add_row(
            model["name"],
            f"{model['version'] or '-'} of {', '.join(model['versions']) or 'none'}",
            "[green]yes[/]" if model["ready"] else "[red]no[/]",
            ", ".join(f"{t['name']} {t['dtype']} {t['shape']}" for t in model["inputs"]),
            ", ".join(f"{t['name']} {t['dtype']} {t['shape']}" for t in model["outputs"]),
            str(model["batch_max"] or ""),
            f"{model['slo_ms']:g}" if model["slo_ms"] else "",
            escape(note),
        )
    return table


@app.command()
def deploy(
    model: Annotated[str, typer.Argument(help="A model in the repository, or the folder of a package.")],
    version: Annotated[str | None, typer.Option(help="The newest if not given.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the outcome.")] = 300.0,
) -> None:
    """Prepares a version and makes it current once it is prepared; traffic goes on meanwhile."""
    from gearmesh.operations.adoption import order

    config = settings()
    with operator_of(config) as operator:
        told = operator.catalogue()
    with _package_is_sound():
        asked = order(model, version, told, config.model_repository, config.factory_allow)
    for note in asked.notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)
    message = wire.Deploy(call=1, name=asked.name, version=asked.version)
    _operate(config, message, timeout, f"preparing {asked.name}", asked.hint)


@contextlib.contextmanager
def _package_is_sound() -> Iterator[None]:
    """Exits if the package cannot be deployed: 1, or 2 if it is no package or a damaged one."""
    try:
        yield
    except PackageError as error:
        err.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2 if error.code == PackageCode.BAD_PACKAGE else 1) from error


@app.command()
def undeploy(model: str) -> None:
    """Takes no new requests for the model, and frees its memory once those in flight have ended.

    Its memory is freed two seconds later, or when the requests in flight are done.
    """
    _operate(settings(), wire.Undeploy(call=1, name=model), 10.0, f"undeploying {model}")


@app.command()
def rollback(model: str, timeout: float = 300.0) -> None:
    """Makes the version that was current before this one current again."""
    from gearmesh.operations.adoption import check_content
    from gearmesh.operations.repositories import known_of

    config = settings()
    with operator_of(config) as operator:
        told = operator.catalogue()
    known = known_of(told, model)
    previous = known.previous if known is not None else None
    if previous is not None:
        with _package_is_sound():
            check_content(model, previous, told)
    message = wire.Rollback(call=1, name=model, version=previous)
    _operate(config, message, timeout, f"rolling back {model}")


def _tell(line: str | None) -> None:
    if line is not None:
        err.print(line, highlight=False, markup=False, soft_wrap=True)


def _operate(config: Settings, message: Any, timeout_s: float, doing: str, hint: str = "") -> None:
    progress = WaitingLines(time.monotonic(), timeout_s)
    with operator_of(config) as operator, err.status(f"{doing} ..."):
        reply = operator.call(message, timeout_s, told=lambda waits: _tell(progress.line(waits, time.monotonic())))
    if reply.ok:
        out.print(reply.message)
        return
    if hint and reply.field == "name" and reply.code != PackageCode.NAME_TAKEN:
        reply = msgspec.structs.replace(reply, faults=(*reply.faults, hint))
    refused(reply)
