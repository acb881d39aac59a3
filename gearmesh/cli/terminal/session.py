"""What every command shares: settings, and a client that has been answered."""

import contextlib
import socket
import time
from collections.abc import Iterator

from frontend.client.client import Client, RequestError
from gearmesh.cli.terminal.telling import usage
from mesh.errors import GearmeshError
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings

REACHED_WITHIN_S = 1.0  # a frontend that runs, or is being restarted, answers a ping within this time
LOOK_S = 0.05  # between two attempts to connect
ANSWERS_WITHIN_S = 3.0  # one that is alive, even barely, answers within this time; waited for where somebody listens


def settings() -> Settings:
    """The settings of this shell with usable keys; exits 2 if there is a fault."""
    try:
        found = read_settings()
        found.keys()
    except GearmeshError as error:
        usage(str(error))
    return found


@contextlib.contextmanager
def client(config: Settings) -> Iterator[Client]:
    """A client of the settings' frontend, which has answered a ping; exits 2 if none answers."""
    keys = config.keys()
    address = config.frontend_address
    with Client(address, keys=keys.for_clients if keys else None) as session:
        if not _answers(session, REACHED_WITHIN_S):
            if not _listens(config.host, config.frontend_port):
                usage(f"nobody answers at {address}; is the mesh up? (gearmesh up)")
            if not _answers(session, ANSWERS_WITHIN_S - REACHED_WITHIN_S):
                usage(
                    f"nobody answers at {address} within {ANSWERS_WITHIN_S:g} s, though something listens there: a "
                    "frontend that is overloaded, one with other keys (GEARMESH_KEYS_DIR), or another program; "
                    "`gearmesh status` and `gearmesh doctor` tell more"
                )
        yield session


def _answers(session: Client, within_s: float) -> bool:
    try:
        session.call("ping", timeout_s=within_s)
    except RequestError:
        return False
    return True


def _listens(host: str, port: int) -> bool:
    """Whether a connection to the port can be made."""
    try:
        with socket.create_connection((host, port), REACHED_WITHIN_S):
            return True
    except OSError:
        return False


def await_listener(host: str, port: int) -> bool:
    """Whether a connection to the port can be made soon: who listens there may be about to start."""
    ends_s = time.monotonic() + REACHED_WITHIN_S
    while not (found := _listens(host, port)) and time.monotonic() < ends_s:
        time.sleep(LOOK_S)
    return found
