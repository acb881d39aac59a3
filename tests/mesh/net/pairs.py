"""A port and a link to it, and the settings with which peers are missed sooner or later."""

from typing import Any

import pytest

from mesh import wire
from tests.mesh.net.processes import Calling, Listening, Processes

HELLO = wire.FrontendHello(member="frontend-1", host="here", results=())
QUICK = {"heartbeat_ms": 15.0, "silence_ms_max": 120.0}  # when a peer has to be lost
STEADY = {"heartbeat_ms": 10.0, "silence_ms_max": 500.0}  # when no peer may be lost: no thread here waits that long
PATIENT = {"heartbeat_ms": 15.0, "silence_ms_max": 60_000.0}  # no peer is lost for its silence

QUIET = {"heartbeat_ms": 10_000.0, "silence_ms_max": 60_000.0}  # nobody says what a test does not make him say

both_makes = pytest.mark.parametrize("make", ["zeromq", "memory"])


def pair(made: Processes, make: str, **options: Any) -> tuple[Listening, Calling]:
    """A port and a link to it, in two processes or in one."""
    here = made.runtime()
    listening = made.port(here, **options)
    calling = made.link(here if make == "memory" else made.runtime(), listening.addresses, **options)
    assert (calling.link.sock is None) is (make == "memory")
    return listening, calling


def cancel(number: int) -> wire.Cancel:
    return wire.Cancel(request=number)
