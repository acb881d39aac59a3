"""Calls to the broker from a command, and how a refusal is told."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer

from frontend.admin.operator import NoBroker, Operator
from gearmesh.cli.terminal.session import err, usage
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
def operator_of(config: Settings) -> Iterator[Operator]:
    """A link to the broker of the settings; or exit 2 if nobody answers there, 1 if it takes too long."""
    with Operator(config) as operator:
        try:
            yield operator
        except NoBroker as error:
            usage(str(error))
        except TimeoutError as error:
            err.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(1) from error


def refused(reply: wire.CallReply) -> NoReturn:
    """Says why, and exits 1."""
    code = f" ({reply.code})" if reply.code else ""
    err.print(f"{reply.message}{code}", style="red", highlight=False, markup=False, soft_wrap=True)
    for fault in reply.faults:
        err.print(f"  - {fault}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)
