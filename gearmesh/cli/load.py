"""`gearmesh load`: the shell around plan, runner and report."""

import asyncio
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gearmesh.cli.terminal.consoles import console
from gearmesh.load.errors import LoadError
from gearmesh.load.options import LoadOptions, plan_of, takes_options, with_models
from gearmesh.load.outputs import STDOUT, ReportFiles, carry_out
from gearmesh.load.plan import Replay
from gearmesh.load.sizes import check_sizes
from gearmesh.load.targets import Where, find_targets, mesh_pids
from mesh.errors import GearmeshError
from mesh.process.configuration import read_settings

PROCESSES_MAX = 64
app = typer.Typer(add_completion=False)
err = console(stderr=True)


@app.command()
@takes_options
def load(
    scenario: Annotated[
        str | None,
        typer.Argument(
            help="paper-6.1 ... paper-6.6: starts a mesh of its own. None: the options below, on the mesh that is up."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model to ask; repeat for several. Default: all that are ready."),
    ] = None,
    processes: Annotated[int, typer.Option(help="Generator processes.")] = 1,
    address: Annotated[
        list[str] | None, typer.Option(help="Frontend; repeat for several. Default: the settings'.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Paper scenarios: share of the paper's rates and counts. Default: by cores.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Paper scenarios: auto, cpu, cuda or emulated. Default: each its own.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report here; must not exist. -: standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the report here, a PNG; must not exist.")] = None,
    progress: Annotated[bool, typer.Option(help="Live counts while it runs.")] = True,
    **options: Any,
) -> None:
    """Asks the models of a mesh at a given rate or with so many clients, and reports the outcome."""
    try:
        _refuse_existing(json_file if json_file != STDOUT else None, "--json")
        _refuse_existing(plot, "--plot")
        if json_file is not None and plot is not None and json_file.absolute() == plot.absolute():
            raise LoadError(f"--json and --plot: are the same file, {plot}; give two names")
        if not 1 <= processes <= PROCESSES_MAX:
            raise LoadError(f"--processes: must be 1 to {PROCESSES_MAX}; got {processes}")
        outputs = ReportFiles(json_file, plot, progress)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # stops mesh and generators
        asked = LoadOptions(**options)
        if scenario is not None:
            from gearmesh.load.stage import run_scenario

            _refuse_options(asked, model, address)
            raise typer.Exit(
                asyncio.run(
                    run_scenario(scenario, scale, device, asked.seconds, asked.seed, processes, asked.back_off, outputs)
                )
            )
        if scale is not None or device is not None:
            raise LoadError("--scale and --device belong to the scenarios paper-6.1 ... paper-6.6")
        raise typer.Exit(asyncio.run(_run(asked, model or [], address or [], processes, outputs)))
    except GearmeshError as error:
        usage(str(error))
    except KeyboardInterrupt:
        usage("interrupted; nothing was written")


def usage(message: str) -> NoReturn:
    """Prints what is wrong and exits 2."""
    err.print(f"gearmesh: {message}", style="red", soft_wrap=True)
    raise typer.Exit(2)


def _refuse_options(options: LoadOptions, model: list[str] | None, address: list[str] | None) -> None:
    """Raises LoadError for options that a scenario excludes, as it brings its own mesh and load."""
    default = replace(LoadOptions(), seconds=options.seconds, seed=options.seed, back_off=options.back_off)
    given = [
        field.name for field in fields(LoadOptions) if getattr(options, field.name) != getattr(default, field.name)
    ]
    given += [name for name, value in (("model", model), ("address", address)) if value]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise LoadError(
            f"{names}: a scenario brings its own load; with it go --seconds, --seed, --back-off, --processes, --scale "
            "and --device"
        )
    if options.seed < 0:
        raise LoadError(f"--seed: must be 0 or more; got {options.seed}")


def _refuse_existing(file: Path | None, option: str) -> None:
    if file is None:
        return
    if file.exists():
        raise LoadError(f"{option} {file}: it exists already; give another name, or remove it")
    if not file.parent.is_dir():
        raise LoadError(f"{option} {file}: there is no folder {file.parent}")


async def _run(
    options: LoadOptions, models: list[str], addresses: list[str], processes: int, outputs: ReportFiles
) -> int:
    config = read_settings()
    plan = plan_of(options, ("-",))
    source = plan.phases[0].streams[0].source
    if isinstance(source, Replay):
        models = models or list(dict.fromkeys(line.model for line in source.lines))
    where = Where(tuple(addresses or [config.frontend_address]), config.keys_dir)
    for one in where.addresses:
        if "://" not in one:
            raise LoadError(f"--address {one}: must be like tcp://127.0.0.1:5555")
    targets = await find_targets(where, models)
    check_sizes(options.sizes, targets)
    plan = with_models(plan, tuple(targets))
    return await carry_out(plan, targets, where, processes, outputs, await mesh_pids(where))
