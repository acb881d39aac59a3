"""A frontend, and a gateway, that run out of file descriptors: who is connected is served on, and the log says why."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frontend.client.client import Client
from gearmesh.operations.ports import free_ports
from mesh.process.descriptors import KEPT
from mesh.process.settings import without_settings
from scripts import ROOT
from tests.loops import LIMIT_S

DESCRIPTORS, CONNECTIONS = 256, 300
PAUSE_S = 0.02


def _few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


@contextlib.contextmanager
def process(module: str, folder: Path, **settings: object) -> Iterator[Path]:
    """Runs `python -m module` with few descriptors; yields the file of its log."""
    clean = without_settings(os.environ)
    named = {f"GEARMESH_{key.upper()}": str(value) for key, value in settings.items()}
    log = folder / "log"
    with log.open("w") as out, subprocess.Popen(
        [sys.executable, "-m", module],
        env={**clean, "GEARMESH_DATA_DIR": str(folder), "GEARMESH_LOG_FORMAT": "json", **named},
        cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, preexec_fn=_few,
    ) as running:  # fmt: skip
        try:
            yield log
        finally:
            running.kill()


def until(holds: Callable[[], Any]) -> Any:
    """What holds, once it does. Raises: TimeoutError."""
    ends_s = time.monotonic() + LIMIT_S
    while not (found := holds()):
        if time.monotonic() > ends_s:
            raise TimeoutError
        time.sleep(PAUSE_S)
    return found


def lines(log: Path, event: str) -> list[dict[str, Any]]:
    """The log's lines about this."""
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in told if line["event"] == event]


def connected(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT_S):
        return True
    return False


@contextlib.contextmanager
def crowd(port: int) -> Iterator[list[socket.socket]]:
    """Many connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT_S)) for _ in range(CONNECTIONS)]


def closed(socks: list[socket.socket]) -> int:
    """How many of them the other side has closed."""
    count = 0
    for sock in socks:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
            count += 1
    return count


def open_connections(client: Client) -> int:
    """How many a frontend has."""
    status = client.call("status", timeout_s=10.0)
    return int(status["connections"] - status["disconnections"])


def check(told: dict[str, Any]) -> None:
    """The line says what there is too little of, and how there is more."""
    assert (told["level"], told["limit"]) == ("error", DESCRIPTORS)
    assert "ulimit -n" in told["advice"]


def test_a_frontend_serves_on_those_who_are_connected_and_others_when_there_is_room(tmp_path: Path) -> None:
    port, broker_port = free_ports(2)
    with process("frontend", tmp_path, frontend_port=port, broker_port=broker_port) as log:
        until(lambda: connected(port))
        with Client(f"tcp://127.0.0.1:{port}") as client:
            client.call("ping")
            with crowd(port) as socks:
                check(until(lambda: lines(log, "descriptors_exhausted"))[0])
                most = DESCRIPTORS - KEPT
                until(lambda: closed(socks) >= CONNECTIONS - most)
                assert client.call("status", timeout_s=10.0)["accept_failed"] >= CONNECTIONS - most
                until(lambda: open_connections(client) <= most)  # those that are closed are counted a moment later
            assert not lines(log, "frontend_silent")
            until(lambda: open_connections(client) == 1)
            with Client(f"tcp://127.0.0.1:{port}") as other:
                assert other.call("ping", timeout_s=LIMIT_S)["status"] == "ok"
        assert len(lines(log, "descriptors_exhausted")) <= 3


def test_a_gateway_serves_on_those_who_are_connected_and_others_when_there_is_room(tmp_path: Path) -> None:
    port, frontend_port, broker_port = free_ports(3)
    settings = {"http_port": port, "frontend_port": frontend_port, "broker_port": broker_port}

    def live(sock: socket.socket) -> bytes:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        return sock.recv(4096)

    with process("frontend.gateway", tmp_path, **settings) as log:
        until(lambda: connected(port))
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
            assert live(sock).startswith(b"HTTP/1.1 200")
            with crowd(port) as socks:
                check(until(lambda: lines(log, "descriptors_exhausted"))[0])
                until(lambda: closed(socks) >= CONNECTIONS - (DESCRIPTORS - KEPT))
                assert live(sock).startswith(b"HTTP/1.1 200")
            until(lambda: is_served_anew(port, live))


def is_served_anew(port: int, live: Callable[[socket.socket], bytes]) -> bool:
    """Whether a new connection is served."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        return live(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("soft", "hard"), [(64, 128), (128, 128)])
def test_a_service_raises_its_limit_as_far_as_it_may(soft: int, hard: int) -> None:
    code = (
        "import resource; from mesh.process import descriptors as d; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); d.raise_limit(); "
        "print(d.limit(), d.limit_max())"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(hard), str(hard)]


def _connected_now(client: Client) -> int:
    status = client.call("status", timeout_s=10.0)
    return int(status["connections"]) - int(status["disconnections"])
