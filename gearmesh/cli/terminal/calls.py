"""Calls to the broker from a command, and how a refusal is told."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer

from frontend.admin.operator import NoBroker, Operator
from gearmesh.cli.terminal.session import err, usage
from mesh import wire
from mesh.process.settings import Settings


@contextlib.contextmanager
def operator_of(config: Settings) -> Iterator[Operator]:
    """A link to the broker of the settings; or exit 2 if nobody answers there, 1 if it takes too long."""
    with Operator(config) as operator:
        try:
            yield operator
        except NoBroker as error:
            usage(str(error))
        except TimeoutError as error:
            err.print(str(error), style="red", highlight=False)
            raise typer.Exit(1) from error


def refused(reply: wire.CallReply) -> NoReturn:
    """Says why, and exits 1."""
    code = f" ({reply.code})" if reply.code else ""
    err.print(f"{reply.message}{code}", style="red", highlight=False, markup=False, soft_wrap=True)
    for fault in reply.faults:
        err.print(f"  - {fault}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)
