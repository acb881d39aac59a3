"""Calls to the mesh from a command, and how a refusal is told."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from frontend.admin.operator import NoBroker, Operator
from frontend.client.client import Client, RequestError
from gearmesh.cli.terminal.session import await_listener, client, settings
from gearmesh.cli.terminal.telling import refuse, usage
from mesh import wire
from mesh.process.settings import Settings

TOLD_AFTER_S = 2.0  # a call that takes no longer says nothing
TOLD_EVERY_S = 5.0


class WaitingLines:
    """What a person is told of a call that takes its time: at once when it waits for something else, and again."""

    def __init__(self, began_s: float, timeout_s: float) -> None:
        self._began_s, self._timeout_s = began_s, timeout_s
        self._reason = ""
        self._told_s = float("-inf")

    def line(self, waits: wire.CallWaits, now: float) -> str | None:
        """The line to print now; None if it is not time for one."""
        waited_s = now - self._began_s
        news = waits.reason != self._reason
        if waited_s < TOLD_AFTER_S or (not news and now - self._told_s < TOLD_EVERY_S):
            return None
        self._reason, self._told_s = waits.reason, now
        return f"{waits.message} ({waited_s:.0f} of {self._timeout_s:.0f} s)"


@contextlib.contextmanager
def asking() -> Iterator[Client]:
    """A client that has been answered; what it is refused in the block is told, and exits 1."""
    with client(settings()) as session:
        try:
            yield session
        except RequestError as error:
            refuse(str(error), code=error.code)


@contextlib.contextmanager
def operator_of(config: Settings) -> Iterator[Operator]:
    """A link to the broker of the settings; or exit 2 if nobody answers there, 1 if it takes too long."""
    if not await_listener(config.broker_host or config.host, config.broker_port):
        usage(f"no broker answers at {config.broker_address}; is the mesh up? (gearmesh up)")
    with Operator(config) as operator:
        try:
            yield operator
        except NoBroker as error:
            usage(str(error))
        except TimeoutError as error:
            refuse(str(error))


def refused(reply: wire.CallReply) -> NoReturn:
    """Says why, and exits 1."""
    told = f"{reply.message} ({reply.code})" if reply.code else reply.message
    refuse(told, code=reply.code, faults=reply.faults)
