"""What every command shares: consoles, settings, a client, and how a command refuses."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer

from frontend.client.client import Client, RequestError
from gearmesh.cli.terminal.consoles import console
from mesh.errors import GearmeshError
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings

ANSWERS_WITHIN_S = 3.0  # a frontend that is alive, even barely, answers a ping within this time
out = console()
err = console(stderr=True)


def settings() -> Settings:
    """The settings of this shell with usable keys; exits 2 if there is a fault."""
    try:
        found = read_settings()
        found.keys()
    except GearmeshError as error:
        usage(str(error))
    return found


def usage(message: str) -> NoReturn:
    """Prints what is wrong and exits 2."""
    err.print(f"gearmesh: {message}", style="red", highlight=False, markup=False)
    raise typer.Exit(2)


@contextlib.contextmanager
def client(config: Settings) -> Iterator[Client]:
    """A client of the settings' frontend, which has answered a ping; exits 2 if none answers."""
    keys = config.keys()
    address = config.frontend_address
    with Client(address, keys=(keys.public, keys.public, keys.secret) if keys else None) as session:
        try:
            session.call("ping", timeout_s=ANSWERS_WITHIN_S)
        except RequestError:
            usage(f"nobody answers at {address}; is the mesh up? (gearmesh up)")
        yield session
