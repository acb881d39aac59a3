"""`gearmesh up` and `doctor`: a mesh on this machine, and what it needs."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gearmesh.cli.terminal.session import settings
from gearmesh.cli.terminal.telling import AsJson, tell, usage
from mesh.errors import GearmeshError

app = typer.Typer(add_completion=False)


@app.command()
def up(
    compact: Annotated[
        bool, typer.Option(help="Broker, controller, frontend in one process; on a CPU the worker, too.")
    ] = False,
    formation: Annotated[
        list[str] | None, typer.Option("--formation", "-f", help="frontend=2: how many of it.")
    ] = None,
    procfile: Annotated[
        Path | None, typer.Option(help="What to run; if none, this folder's if it runs a mesh, or else gearmesh's own.")
    ] = None,
) -> None:
    """Runs the Procfile: starts again what dies, tells when the mesh is ready, ends all on Ctrl-C."""
    from gearmesh.operations.up import run_up

    counts = {}
    for item in formation or []:
        name, equals, count = item.partition("=")
        if not equals or not count.isdecimal():
            usage(f"--formation takes NAME=COUNT, as in frontend=2; got {item!r}")
        counts[name] = int(count)
    config = settings()
    try:
        config.mesh_keys(make=True)  # before anything else makes data_dir, and once in place of once for each process
    except GearmeshError as error:
        usage(str(error))
    raise typer.Exit(asyncio.run(run_up(config, procfile, counts, compact=compact)))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Examines this machine, the settings, the repository and the mesh, and says what to mend."""
    from gearmesh.operations.doctor import examine, findings_table

    findings = examine(settings())
    found = [{"grade": grade, "subject": subject, "finding": finding} for grade, subject, finding in findings]
    tell({"findings": found}, findings_table(findings))
    raise typer.Exit(1 if any(grade == "bad" for grade, _, _ in findings) else 0)
