"""`gearmesh`: what an operator or a client does from a shell. Exit codes: docs/operations.md."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from frontend.admin.operator import NoBroker, Operator
from frontend.client.client import Client, RequestError
from gearmesh.cli.answers import show
from gearmesh.cli.applications import applications, from_json
from gearmesh.cli.consoles import console
from gearmesh.cli.importing import import_
from gearmesh.cli.load import load
from gearmesh.cli.simulate import simulate
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import GearmeshError, PackageError
from mesh.net.keys import Keys
from mesh.process.settings import Settings, read_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="DNN serving with predictable latency.",
)
app.command()(simulate)
ANSWERS_WITHIN_S = 3.0  # a frontend that is there, if only just, answers a ping at once
CLAIMED_WITHIN_S = 10.0  # the broker writes it down, on whatever disk
out = console()
err = console(stderr=True)
app.command()(load)
app.command("import")(import_)


def main() -> None:
    """The console script."""
    app()


def settings() -> Settings:
    """The settings of this shell, with keys that can be used; or exit 2."""
    try:
        found = read_settings()
        found.keys()
    except GearmeshError as error:
        usage(str(error))
    return found


def usage(message: str) -> NoReturn:
    """Says what is wrong and exits 2."""
    err.print(f"gearmesh: {message}", style="red", highlight=False, markup=False)
    raise typer.Exit(2)


@contextlib.contextmanager
def client(config: Settings) -> Iterator[Client]:
    """A client of the frontend in the settings, which answers; or exit 2."""
    keys = config.keys()
    address = config.frontend_address
    with Client(address, keys=(keys.public, keys.public, keys.secret) if keys else None) as session:
        try:
            session.call("ping", timeout_s=ANSWERS_WITHIN_S)
        except RequestError:
            usage(f"nobody answers at {address}; is the mesh up? (gearmesh up)")
        yield session


@app.command()
def up(
    compact: Annotated[bool, typer.Option(help="Broker, controller and frontend in one process.")] = False,
    formation: Annotated[
        list[str] | None, typer.Option("--formation", "-f", help="frontend=2: how many of it.")
    ] = None,
    procfile: Annotated[Path, typer.Option(help="What to run.")] = Path("Procfile"),
) -> None:
    """Runs the Procfile: restarts what dies, says when the mesh is ready, stops everything on Ctrl-C."""
    from gearmesh.operations.up import run_up

    counts = {}
    for item in formation or []:
        name, equals, count = item.partition("=")
        if not equals or not count.isdecimal():
            usage(f"--formation takes NAME=COUNT, as in frontend=2; got {item!r}")
        counts[name] = int(count)
    raise typer.Exit(asyncio.run(run_up(settings(), procfile, counts, compact=compact)))


@app.command()
def status(
    over: Annotated[float, typer.Option(help="Seconds that rates are taken over; 0: since the start.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, totals since the start.")] = False,
) -> None:
    """Who is there and how each is, what is served, how requests fare, how well times are predicted."""
    from gearmesh.cli.watching import run_status

    raise typer.Exit(run_status(settings(), over, out, err, as_json=as_json, models_table=_models_table))


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    count: Annotated[int, typer.Option("--count", "-n", help="Looks until it ends; 0: until Ctrl-C.")] = 0,
) -> None:
    """The same, live."""
    from gearmesh.cli.watching import run_top

    raise typer.Exit(run_top(settings(), interval, count, out, err))


@app.command()
def logs(
    source: Annotated[Path | None, typer.Argument(help="A folder of logs, or one log; the settings' if none.")] = None,
) -> None:
    """What the request log and the action log say: outcomes, latencies, how well times were predicted."""
    from gearmesh.telemetry.log_report import run_logs

    raise typer.Exit(run_logs(source or settings().telemetry_folder, out, err))


@app.command()
def metrics() -> None:
    """The same for Prometheus, in its text format."""
    from gearmesh.cli.watching import run_metrics

    raise typer.Exit(run_metrics(settings(), err))


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="Where to; open it at ui.perfetto.dev or chrome://tracing.")],
    seconds: Annotated[float, typer.Option(help="How long to record.")] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Records what the running mesh plans and does, and writes a timeline."""
    from gearmesh.cli.watching import run_trace

    raise typer.Exit(run_trace(settings(), file, seconds, out, err, force=force))


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="As the frontend sent it.")] = False) -> None:
    """What is deployed."""
    with client(settings()) as session:
        try:
            found = session.models()
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        out.print(_models_table(found))


def _models_table(found: list[dict[str, Any]]) -> Table:
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
    """Prepares a version, and makes it current once it is prepared; traffic goes on meanwhile."""
    from gearmesh.operations.adoption import order

    config = settings()
    with _operator(config) as operator:
        told = operator.catalogue()
    with _package_is_sound():
        asked = order(model, version, told, config.model_repository, config.factory_allow)
    for note in asked.notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)
    message = wire.Deploy(call=1, name=asked.name, version=asked.version)
    _operate(config, message, timeout, f"preparing {asked.name}", asked.hint)


@contextlib.contextmanager
def _package_is_sound() -> Iterator[None]:
    """The package can be deployed; or exit 1, of one that is none, or is damaged, 2."""
    try:
        yield
    except PackageError as error:
        err.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2 if error.code == PackageCode.BAD_PACKAGE else 1) from error


@app.command()
def undeploy(model: str) -> None:
    """Takes no new requests for the model; its memory is freed two seconds later, or when those in flight are done."""
    _operate(settings(), wire.Undeploy(call=1, name=model), 10.0, f"undeploying {model}")


@app.command()
def rollback(model: str, timeout: float = 300.0) -> None:
    """Makes the version that was current before this one current again."""
    from gearmesh.operations.adoption import check_content
    from gearmesh.operations.repositories import known_of

    config = settings()
    with _operator(config) as operator:
        told = operator.catalogue()
    known = known_of(told, model)
    previous = known.previous if known is not None else None
    if previous is not None:
        with _package_is_sound():
            check_content(model, previous, told)
    message = wire.Rollback(call=1, name=model, version=previous)
    _operate(config, message, timeout, f"rolling back {model}")


@contextlib.contextmanager
def _operator(config: Settings) -> Iterator[Operator]:
    """A link to the broker of the settings; or exit 2 if nobody answers there, 1 if it takes too long."""
    with Operator(config) as operator:
        try:
            yield operator
        except NoBroker as error:
            usage(str(error))
        except TimeoutError as error:
            err.print(str(error), style="red", highlight=False)
            raise typer.Exit(1) from error


def _operate(config: Settings, message: Any, timeout_s: float, doing: str, hint: str = "") -> None:
    with _operator(config) as operator, err.status(f"{doing} ..."):
        reply = operator.call(message, timeout_s)
    if reply.ok:
        out.print(reply.message)
        return
    if hint and reply.field == "name" and reply.code != PackageCode.NAME_TAKEN:
        reply = msgspec.structs.replace(reply, faults=(*reply.faults, hint))
    _refused(reply)


def _refused(reply: wire.CallReply) -> NoReturn:
    """Says why, and exits 1."""
    code = f" ({reply.code})" if reply.code else ""
    err.print(f"{reply.message}{code}", style="red", highlight=False, markup=False, soft_wrap=True)
    for fault in reply.faults:
        err.print(f"  - {fault}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="A model, or with --app an application.")],
    source: Annotated[str, typer.Argument(help="A .npy file, a JSON array (or a file of one), an image file, or - .")],
    slo_ms: Annotated[float | None, typer.Option(help="Budget; the model's own if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer.")] = False,
    as_app: Annotated[bool, typer.Option("--app", help="Ask an application.")] = False,
    context: Annotated[str | None, typer.Option(help="Whose selection state; with --app.")] = None,
) -> None:
    """Asks a model or an application once, and prints what it says."""
    from gearmesh.cli.inputs import InputError, read_input

    if context is not None and not as_app:
        usage("--context goes with --app: a model has no state to select")
    config = settings()
    with client(config) as session:
        try:
            known = session.apps() if as_app else session.models()
            spec = next((entry for entry in known if entry["name"] == model), None)
            if spec is None:
                kind = "application" if as_app else "model"
                hint = "; --app asks an application" if not as_app else ""
                usage(f"there is no {kind} {model!r}; there are: {', '.join(e['name'] for e in known) or 'none'}{hint}")
            if not as_app and not spec["inputs"]:  # it was never ready
                _not_ready(spec)
            x = read_input(source, spec)
            if as_app:
                prediction = session.infer(app=model, x=x, slo_ms=slo_ms, context=context)
            else:
                prediction = session.infer(model, x, slo_ms=slo_ms)
        except InputError as error:
            usage(str(error))
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if as_json:
        outputs = {name: array.tolist() for name, array in prediction.outputs.items()}
        print(json.dumps({**prediction.answer, "outputs": outputs}))
        return
    show(prediction, spec.get("labels") or [], out)


def _not_ready(model: dict[str, Any]) -> NoReturn:
    """Says why the model takes no requests yet, and exits 1."""
    why = model["fault"] or (f"version {model['preparing']} is being prepared" if model["preparing"] else "")
    text = f"{model['name']} is not ready: {why or 'no version of it is current'}"
    err.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


app.add_typer(applications, name="apps")


@app.command()
def feedback(
    decision: Annotated[str, typer.Argument(help="decision_id of an application's answer.")],
    label: Annotated[str | None, typer.Option(help="The truth, as JSON: 7, a name, or a list by row.")] = None,
    loss: Annotated[float | None, typer.Option(help="Or how bad the answer was.")] = None,
    context: Annotated[str | None, typer.Option(help="The context it was asked in; checked.")] = None,
) -> None:
    """Tells an application how good its answer was."""
    if (label is None) == (loss is None):
        usage("give either --label or --loss")
    with client(settings()) as session:
        try:
            told = session.feedback(decision, label=from_json(label), loss=loss, context=context)
        except RequestError as error:
            err.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(1) from error
    if told["applied"]:
        out.print("applied")
        return
    err.print(f"not applied ({told['reason']}): {told['message']}", highlight=False, markup=False)
    raise typer.Exit(1)


@app.command()
def container(
    model: Annotated[str, typer.Option(help="Name that clients ask for.")],
    predict: Annotated[str, typer.Option(help="MODULE:FUNCTION from this folder; MODULE:MODEL.predict will do.")],
    python: Annotated[str, typer.Option(help="Interpreter for it; it needs numpy, nothing of gearmesh.")] = "",
    version: Annotated[
        str | None, typer.Option(help="If none: the code's own, or the next one for code that was not seen before.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Names of the first output's classes, by commas.")] = "",
    input_: Annotated[list[str] | None, typer.Option("--input", help="NAME:DTYPE:SHAPE: x:float32:-1,64.")] = None,
    output: Annotated[list[str] | None, typer.Option(help="Likewise.")] = None,
    sample: Annotated[Path | None, typer.Option(help="A .npy or .npz of inputs that shows both; run once.")] = None,
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
    """Serves a Python function as a model: one array per input, batch first; an array, or a dict of them, back."""
    from gpu_worker.container.main import check_container, run_container
    from gpu_worker.container.specs import ContainerOptions, parse_tensor

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
    """The running `gearmesh up` keeps the container, if its code is good."""
    from gearmesh.operations.containers import REPLICAS_MAX, Kept, Roster
    from gpu_worker.container.main import check_container

    roster = Roster(config.data_dir)
    if not 0 <= replicas <= REPLICAS_MAX:
        usage(f"--replicas must be between 0 and {REPLICAS_MAX}; got {replicas}")
    if not roster.is_watched:
        err.print(f"no `gearmesh up` runs with GEARMESH_DATA_DIR={config.data_dir}; it would keep the replicas")
        raise typer.Exit(1)
    content = check_container(options, start_s=start_s)
    if content is None:
        raise typer.Exit(2)
    claim = wire.ClaimVersion(call=1, name=options.model, content=content, version=options.version)
    with _operator(config) as operator:
        reply = operator.call(claim, CLAIMED_WITHIN_S)
    if not reply.ok:
        _refused(reply)
    given = sys.argv[sys.argv.index("container") + 1 :]
    at = next(i for i, word in enumerate(given) if word.startswith("--replicas"))
    del given[at : at + (1 if "=" in given[at] else 2)]
    with _roster_is_sound():
        before = roster.put(options.model, Kept(given, str(Path.cwd()), replicas, reply.version, content))
    if before is not None and (before.arguments, before.code) != (given, content):
        out.print(f"{options.model}: what was kept under this name is being replaced")
    out.print(
        f"{options.model}: {replicas} replicas of version {reply.version} are being kept; "
        f"`gearmesh scale {options.model} N` changes that", soft_wrap=True,
    )  # fmt: skip


@contextlib.contextmanager
def _roster_is_sound() -> Iterator[None]:
    """The file of containers can be read and written; or exit 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        err.print(f"{error}; mend that file, or remove it", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from error


@app.command()
def scale(
    model: Annotated[str, typer.Argument(help="A container started with --replicas.")],
    replicas: Annotated[int, typer.Argument(help="How many of it are to run; 0 stops it.")],
) -> None:
    """Has the running `gearmesh up` keep so many replicas of a container; those that go finish what they have."""
    from gearmesh.operations.containers import REPLICAS_MAX, Roster

    config = settings()
    roster = Roster(config.data_dir)
    if not 0 <= replicas <= REPLICAS_MAX:
        usage(f"the number of replicas must be between 0 and {REPLICAS_MAX}; got {replicas}")
    if not roster.is_watched:
        err.print(f"no `gearmesh up` runs with GEARMESH_DATA_DIR={config.data_dir}; it would keep the replicas")
        raise typer.Exit(1)
    with _roster_is_sound():
        if not roster.scale(model, replicas):
            known = ", ".join(sorted(roster.read())) or "none"
            usage(f"no container {model!r} was started with --replicas; there are: {known}")
    out.print(f"{model}: {replicas} replicas are being kept")
    for name, why in roster.down().items():
        if name.rpartition(".")[0] == model and replicas:
            out.print(f"{name} was down, and is tried again: {why}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """Looks over this machine, the settings, the repository and the mesh, and says what to mend."""
    from gearmesh.operations.doctor import examine

    raise typer.Exit(examine(settings(), out))


@app.command()
def keys(folder: Path) -> None:
    """Makes the keys that a mesh beyond loopback needs (GEARMESH_KEYS_DIR)."""
    try:
        Keys.make(folder)
    except OSError as error:
        usage(f"{folder}: {error.strerror}")
    out.print(f"{folder}/mesh.key_secret: for the services.  {folder}/client.key_secret and mesh.key: for clients.")


if __name__ == "__main__":
    main()
