"""`gearmesh models`, `deploy`, `undeploy` and `rollback`."""

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from gearmesh.cli.completing import model_names
from gearmesh.cli.screens.tables import dims_text, tensor_text
from gearmesh.cli.terminal.calls import WaitingLines, asking, operator_of, refused
from gearmesh.cli.terminal.consoles import text_of
from gearmesh.cli.terminal.session import settings
from gearmesh.cli.terminal.telling import AsJson, err, progress, refuse, remark, tell
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.names import listed
from mesh.process.settings import Settings

app = typer.Typer(add_completion=False)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One of them, in detail.", autocompletion=model_names)] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the deployed models, or shows one of them in detail."""
    from gearmesh.cli.screens.model import model_table, placed

    with asking() as session:
        found = session.models()
    if name is None:
        tell(found, models_table(found))
        return
    model = next((model for model in found if model["name"] == name), None)
    if model is None:
        refuse(f"there is no model {name!r}; there are: {listed(m['name'] for m in found)}", code="unknown_model")
    model["placed"] = placed(settings(), model)
    tell(model, model_table(model))


def models_table(found: list[dict[str, Any]]) -> Table:
    """The models, each on a line."""
    table = Table("model", "version", "ready", "inputs", "outputs", "largest batch", "slo ms", "note")
    table.columns[0].no_wrap = True
    for model in found:
        coming = f"preparing version {model['preparing']}" if model["preparing"] else ""
        note = model["fault"] or coming or model.get("unserved") or ""
        table.add_row(
            model["name"],
            f"{model['version'] or '-'} of {', '.join(model['versions']) or 'none'}",
            text_of(("yes", "green") if model["ready"] else ("no", "red")),
            "; ".join(
                filter(None, [", ".join(f"{t['name']} {tensor_text(t)}" for t in model["inputs"]), dims_text(model)])
            ),
            ", ".join(f"{t['name']} {tensor_text(t)}" for t in model["outputs"]),
            str(model["batch_max"] or ""),
            f"{model['slo_ms']:g}" if model["slo_ms"] else "",
            note,
        )
    return table


@app.command()
def deploy(
    model: Annotated[
        str, typer.Argument(help="A model in the repository, or the folder of a package.", autocompletion=model_names)
    ],
    version: Annotated[str | None, typer.Option(help="The newest if not given.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the outcome.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Prepares a version and makes it current once it is prepared; traffic goes on meanwhile."""
    from gearmesh.operations.adoption import order

    config = settings()
    with operator_of(config) as operator:
        told = operator.catalogue()
    with _package_is_sound():
        asked = order(model, version, told, config.model_repository, config.factory_allow)
    for note in asked.notes:
        remark(note)
    message = wire.Deploy(call=1, name=asked.name, version=asked.version)
    _operate(config, message, timeout, f"preparing {asked.name}", asked.hint)


@contextlib.contextmanager
def _package_is_sound() -> Iterator[None]:
    """Exits if the package cannot be deployed: 1, or 2 if it is no package, a damaged or an unsafe one."""
    try:
        yield
    except PackageError as error:
        exit_code = 2 if error.code in (PackageCode.BAD_PACKAGE, PackageCode.UNSAFE_PACKAGE) else 1
        refuse(str(error), code=error.code, exit_code=exit_code)


@app.command()
def undeploy(model: Annotated[str, typer.Argument(autocompletion=model_names)], as_json: AsJson = False) -> None:
    """Takes no new requests for the model, and frees its memory once those in flight have ended.

    Its memory is freed two seconds later, or when the requests in flight are done.
    """
    _operate(settings(), wire.Undeploy(call=1, name=model), 10.0, f"undeploying {model}")


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(autocompletion=model_names)], timeout: float = 300.0, as_json: AsJson = False
) -> None:
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


def _operate(config: Settings, message: Any, timeout_s: float, doing: str, hint: str = "") -> None:
    lines = WaitingLines(time.monotonic(), timeout_s)
    with operator_of(config) as operator, err.status(f"{doing} ..."):
        reply = operator.call(message, timeout_s, told=lambda waits: progress(lines.line(waits, time.monotonic())))
    if reply.ok:
        tell(
            {"model": message.name, "version": getattr(message, "version", None), "message": reply.message},
            reply.message,
        )
        return
    if hint and reply.field == "name" and reply.code != PackageCode.NAME_TAKEN:
        reply = msgspec.structs.replace(reply, faults=(*reply.faults, hint))
    refused(reply)
