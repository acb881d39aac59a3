"""What every command shares: consoles, settings, a client, and how a command refuses."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer

from frontend.client.client import Client, RequestError
from gearmesh.cli.consoles import console
from mesh.errors import GearmeshError
from mesh.process.settings import Settings, read_settings

ANSWERS_WITHIN_S = 3.0  # a frontend that is there, if only just, answers a ping at once
out = console()
err = console(stderr=True)


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
