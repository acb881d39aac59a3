"""`gearmesh up`, `doctor` and `keys`: a mesh on this machine, and what it needs."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gearmesh.cli.terminal.session import out, settings, usage
from mesh.net.keys import Keys

app = typer.Typer(add_completion=False)


@app.command()
def up(
    compact: Annotated[bool, typer.Option(help="Broker, controller and frontend in one process.")] = False,
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
    raise typer.Exit(asyncio.run(run_up(settings(), procfile, counts, compact=compact)))


@app.command()
def doctor() -> None:
    """Examines this machine, the settings, the repository and the mesh, and says what to mend."""
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
