"""`gearmesh container` and `scale`: Python functions as models."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gearmesh.cli.completing import container_names
from gearmesh.cli.terminal.calls import operator_of, refused
from gearmesh.cli.terminal.session import settings
from gearmesh.cli.terminal.telling import AsJson, refuse, remark, tell, usage
from mesh import wire
from mesh.errors import GearmeshError, NotWritten
from mesh.process.settings import Settings

if TYPE_CHECKING:
    from gearmesh.operations.containers import ContainerFile

CLAIMED_WITHIN_S = 10.0  # time for the broker to write the claim to disk
app = typer.Typer(add_completion=False)


@app.command()
def container(
    model: Annotated[str, typer.Option(help="Name that clients ask for.")],
    predict: Annotated[str, typer.Option(help="MODULE:FUNCTION from this folder; MODULE:MODEL.predict will do.")],
    python: Annotated[str, typer.Option(help="Interpreter for it; it needs numpy, nothing of gearmesh.")] = "",
    version: Annotated[
        str | None, typer.Option(help="If none: the code's own, or the next one for code that was not seen before.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Names of the first output's classes, by commas.")] = "",
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="NAME:DTYPE:SHAPE: x:float32:-1,64, ids:int64:-1,seq.")
    ] = None,
    output: Annotated[list[str] | None, typer.Option(help="Likewise.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Range of an open dimension: seq=1:512.")] = None,
    pad: Annotated[list[str] | None, typer.Option(help="Value that fills an input up: ids=0, the default.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Nothing is filled up: one size per batch.")] = False,
    owner: Annotated[
        list[str] | None, typer.Option(help="Output whose elements have rows, and which output tells: boxes=rows.")
    ] = None,
    count: Annotated[
        list[str] | None, typer.Option(help="Output that is not full, and which one counts: boxes=found.")
    ] = None,
    sample: Annotated[Path | None, typer.Option(help="A .npy, .npz or .json of inputs; run once.")] = None,
    slo_ms: Annotated[float, typer.Option(help="Budget of a request that names none.")] = 1000.0,
    objective_ms: Annotated[float | None, typer.Option(help="Aim for one batch; half of slo-ms if not given.")] = None,
    batching: Annotated[str, typer.Option(help="aimd | quantile | none | fixed:N")] = "aimd",
    batch_wait_ms: Annotated[float, typer.Option(help="How long a batch may wait for expected requests.")] = 0.0,
    batch_max: Annotated[int, typer.Option(help="Most rows in a batch, whatever the batching.")] = 1024,
    memory_mb: Annotated[int, typer.Option(help="It is restarted above this; 0: half of the machine's.")] = 0,
    start_s: Annotated[float, typer.Option(help="It may take so long to be imported.")] = 60.0,
    cache: Annotated[bool, typer.Option(help="Equal inputs have equal outputs.")] = True,
    check: Annotated[bool, typer.Option(help="Import it, run it on --sample, and serve nothing.")] = False,
    replicas: Annotated[int | None, typer.Option(help="Have the running `gearmesh up` keep so many of it.")] = None,
) -> None:
    """Serves Python code as a model: one array per input, batch first; an array, a tuple or a dict back."""
    from gpu_worker.container.main import check_container, run_container
    from gpu_worker.container.specs import ContainerOptions, parse_declared, parse_tensor

    try:
        options = ContainerOptions(
            model=model,
            predict=predict,
            python=python or sys.executable,
            version=version,
            labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
            inputs=tuple(parse_tensor(text, "--input") for text in input_) if input_ else None,
            outputs=tuple(parse_tensor(text, "--output") for text in output) if output else None,
            sample=sample.resolve() if sample is not None else None,
            slo_ms=slo_ms,
            objective_ms=objective_ms,
            batching=batching,
            batch_wait_ms=batch_wait_ms,
            batch_max=batch_max,
            memory_mb=memory_mb,
            cache=cache,
            declared=parse_declared(dim or (), pad or (), owner or (), count or (), exact=exact),
        )
    except GearmeshError as error:
        usage(str(error))
    if check:
        raise typer.Exit(2 if check_container(options, start_s=start_s) is None else 0)
    if replicas is not None:
        _keep_container(settings(), options, replicas, start_s)
        return
    raise typer.Exit(run_container(settings(), options, start_s=start_s))


def _keep_container(config: Settings, options: Any, replicas: int, start_s: float) -> None:
    """Checks the container's code, claims its version, and adds it to what the running `gearmesh up` keeps."""
    from gearmesh.operations.containers import REPLICAS_MAX, ContainerFile, KeptContainer
    from gpu_worker.container.main import check_container

    container_file = ContainerFile(config.data_dir)
    if not 0 <= replicas <= REPLICAS_MAX:
        usage(f"--replicas must be between 0 and {REPLICAS_MAX}; got {replicas}")
    _must_be_watched(container_file)
    if container_file.broker not in ("", config.broker_address):
        usage(
            f"GEARMESH_DATA_DIR={config.data_dir} is of the mesh whose broker is at {container_file.broker}, "
            f"but the settings here name the broker at {config.broker_address}: give the command that mesh's settings "
            "(GEARMESH_CONFIG, or its GEARMESH_... variables)"
        )
    content = check_container(options, start_s=start_s)
    if content is None:
        raise typer.Exit(2)
    claim = wire.ClaimVersion(call=1, name=options.model, content=content, version=options.version)
    with operator_of(config) as operator:
        reply = operator.call(claim, CLAIMED_WITHIN_S)
    if not reply.ok:
        refused(reply)
    given = sys.argv[sys.argv.index("container") + 1 :]
    at = next(i for i, word in enumerate(given) if word.startswith("--replicas"))
    del given[at : at + (1 if "=" in given[at] else 2)]
    with _roster_is_sound():
        before = container_file.put(
            options.model, KeptContainer(given, str(Path.cwd()), replicas, reply.version, content)
        )
    if before is not None and (before.arguments, before.code) != (given, content):
        remark(f"{options.model}: what was kept under this name is being replaced")
    remark(
        f"{options.model}: {replicas} replicas of version {reply.version} are being kept; "
        f"`gearmesh scale {options.model} N` changes that"
    )


def _must_be_watched(container_file: "ContainerFile") -> None:
    """Exits 1 if nobody would keep what the file says."""
    why = container_file.why_unwatched()
    if why:
        refuse(why)


@contextlib.contextmanager
def _roster_is_sound() -> Iterator[None]:
    """Exits 1 if the file of containers cannot be read and written, and says what to do about it."""
    try:
        yield
    except (ValueError, NotWritten) as error:
        refuse(str(error))


@app.command()
def scale(
    model: Annotated[str, typer.Argument(help="A container started with --replicas.", autocompletion=container_names)],
    replicas: Annotated[int, typer.Argument(help="How many of it are to run; 0 stops it.")],
    as_json: AsJson = False,
) -> None:
    """Has the running `gearmesh up` keep so many replicas of a container.

    Replicas that go finish the requests that they have.
    """
    from gearmesh.operations.containers import REPLICAS_MAX, ContainerFile

    config = settings()
    container_file = ContainerFile(config.data_dir)
    if not 0 <= replicas <= REPLICAS_MAX:
        usage(f"the number of replicas must be between 0 and {REPLICAS_MAX}; got {replicas}")
    _must_be_watched(container_file)
    with _roster_is_sound():
        if not container_file.scale(model, replicas):
            known = ", ".join(sorted(container_file.read())) or "none"
            usage(f"no container {model!r} was started with --replicas; there are: {known}")
    down = {name: why for name, why in container_file.down().items() if name.rpartition(".")[0] == model and replicas}
    tell(
        {"model": model, "replicas": replicas, "tried_again": down},
        f"{model}: {replicas} replicas are being kept",
        *(f"{name} was down, and is tried again: {why}" for name, why in down.items()),
    )
