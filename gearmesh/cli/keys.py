"""`gearmesh keys`: the folder of a mesh's keys, and what lies in it for each who may call."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gearmesh.cli.terminal.consoles import text_of
from gearmesh.cli.terminal.telling import AsJson, tell, usage
from mesh.net import key_folder
from mesh.roles import Role

LISTENING = frozenset((Role.FRONTEND, Role.CONTROLLER, Role.BROKER))  # what listens needs the mesh's own pair besides
app = typer.Typer(add_completion=False)


@app.command()
def keys(
    folder: Path,
    role: Annotated[
        list[Role] | None, typer.Option(help="What the holder of a new key is to the mesh; may be given again.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Whose key it is: FOLDER/NAME is made for him.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Which keys may call, and their roles.")] = False,
    revoke: Annotated[str | None, typer.Option(metavar="NAME", help="This key may call no more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes, lists and revokes the keys that a mesh beyond loopback needs (GEARMESH_KEYS_DIR)."""
    asked = [bool(role) or name is not None, listed, revoke is not None]
    if sum(asked) > 1:
        usage("one at a time: --role with --name, --list, or --revoke")
    try:
        if revoke is not None:
            _revoke(folder, revoke)
        elif listed:
            _list(folder)
        elif asked[0]:
            _add(folder, name, role or [])
        else:
            _make(folder)
    except OSError as error:
        usage(f"{error.filename or folder}: {error.strerror}")
    except ValueError as error:
        usage(str(error))


def _make(folder: Path) -> None:
    key_folder.make_folder(folder)
    services, clients = [str(folder / "mesh.key_secret")], [str(folder / "client.key_secret"), str(folder / "mesh.key")]
    tell(
        {"folder": str(folder), "services": services, "clients": clients},
        f"{services[0]}: for the services.  {clients[0]} and mesh.key: for clients.",
        f"A key for one client, worker or operator alone: gearmesh keys {folder} --role client --name NAME",
    )


def _add(folder: Path, name: str | None, roles: list[Role]) -> None:
    if name is None or not roles:
        usage("a new key needs both --role and --name, as in --role client --name alice")
    own = key_folder.add_key(folder, name, roles)
    lines = [f"{own}: the GEARMESH_KEYS_DIR of {name} ({', '.join(sorted(roles))}); move it there, it is secret."]
    if LISTENING & set(roles):
        lines.append(
            f"Its ports need {folder / 'mesh.key_secret'}, {folder / 'mesh.key'} and {folder / 'allowed'} in that "
            "folder, too: with them its machine can do all that the mesh can."
        )
    document = {"folder": str(own), "name": name, "roles": sorted(roles)}
    tell(document, *lines)


def _list(folder: Path) -> None:
    found, faults = key_folder.allowed(folder)
    table = Table("name", "roles", "public key")
    for key in found:
        table.add_row(key.name, ", ".join(sorted(key.roles)), key.public.decode())
    document = {
        "keys": [
            {"name": key.name, "roles": sorted(key.roles), "public": key.public.decode(), "file": str(key.file)}
            for key in found
        ],
        "ignored": faults,
    }
    tell(document, table, *(text_of((f"ignored: {fault}", "yellow")) for fault in faults))


def _revoke(folder: Path, name: str) -> None:
    key_folder.revoke(folder, name)
    tell(
        {"revoked": name},
        f"{name} may not connect any more, and what is connected with that key is heard no more within 1 s: at every "
        "process that reads this folder. Where a machine has a copy of it, remove it there, too.",
    )
