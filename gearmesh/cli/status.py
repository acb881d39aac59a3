"""`gearmesh status`, `top`, `logs`, `metrics` and `trace`: how a mesh is, and how it was."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gearmesh.cli.models import models_table
from gearmesh.cli.terminal.session import settings
from gearmesh.cli.terminal.telling import AsJson, tell, usage

app = typer.Typer(add_completion=False)


@app.command()
def status(
    over: Annotated[float, typer.Option(help="Seconds that rates are taken over; 0: since the start.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Shows the members of the mesh, what it serves, how requests fare, how well times are predicted."""
    from gearmesh.cli.watching import run_status

    run_status(settings(), over, as_json=as_json, models_table=models_table)


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    count: Annotated[int, typer.Option("--count", "-n", help="Looks until it ends; 0: until Ctrl-C.")] = 0,
) -> None:
    """Shows what `status` shows, live."""
    from gearmesh.cli.watching import run_top

    run_top(settings(), interval, count)


@app.command()
def logs(
    source: Annotated[Path | None, typer.Argument(help="A folder of logs, or one log; the settings' if none.")] = None,
    request: Annotated[int | None, typer.Option(help="Only the lines of this request: an answer's `request`.")] = None,
    asked_id: Annotated[str, typer.Option("--id", help="Only the lines of requests with this id of a client.")] = "",
    client: Annotated[int | None, typer.Option(help="Only the lines of this `client` of a frontend.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sums up the request log and the action log: outcomes, latencies, how well times were predicted."""
    from gearmesh.telemetry.journals import LogError
    from gearmesh.telemetry.log_report import actions_table, found_lines, read_logs, requests_table, summary

    folder = source or settings().telemetry_folder
    try:
        if request is not None or asked_id or client is not None:
            lines = found_lines(folder, request, asked_id, client)
            tell(lines, *map(json.dumps, lines))
            if not lines:
                raise typer.Exit(1)
            return
        requests, actions = read_logs(folder)
    except LogError as error:
        usage(str(error))
    shown = [*map(requests_table, requests), *map(actions_table, actions)]
    tell([*map(summary, requests), *map(summary, actions)], *shown)


@app.command()
def metrics() -> None:
    """Prints the mesh's counters in the text format of Prometheus."""
    from gearmesh.cli.watching import run_metrics

    run_metrics(settings())


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="Where to; open it at ui.perfetto.dev or chrome://tracing.")],
    seconds: Annotated[float, typer.Option(help="How long to record.")] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Records what the running mesh plans and does, and writes a timeline."""
    from gearmesh.cli.watching import run_trace

    run_trace(settings(), file, seconds, force=force)
