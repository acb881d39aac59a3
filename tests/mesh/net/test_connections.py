"""mesh/net/connections.py and frontend/descriptors.py: ending a connection by its descriptor costs no other one."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frontend.descriptors import close_connection
from mesh.net.connections import shut

HERE = "127.0.0.1"


def by_its_number(descriptor: int) -> object:
    """As the clients' port does it."""
    return close_connection(descriptor, lambda: True)


def by_its_address(descriptor: int) -> object:
    """As the ports between services do it."""
    shut(descriptor, HERE)
    return None


either = pytest.mark.parametrize("end", [by_its_number, by_its_address])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    with socket.create_server((HERE, 0)) as listening, socket.create_connection(listening.getsockname()) as far:
        near, _ = listening.accept()
        with near:
            yield near, far


def descriptors() -> set[str]:
    """Those that this process has open."""
    return set(os.listdir("/proc/self/fd"))


@either
def test_both_sides_see_that_a_connection_is_ended(
    end: Callable[[int], object], pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    before = descriptors()
    end(near.fileno())
    assert far.recv(1) == b""
    assert near.recv(1) == b""
    assert descriptors() == before


@either
def test_a_descriptor_that_is_no_socket_any_more_is_left_as_it_is(end: Callable[[int], object], tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        before = descriptors()
        assert end(file.fileno()) is None
        assert descriptors() == before
        file.write("still open")
    assert end(1 << 20) is None


def test_a_connection_that_is_another_one_by_now_lives(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    before = descriptors()
    assert close_connection(near.fileno(), lambda: False) is None
    shut(near.fileno(), "127.0.0.2")
    shut(None, HERE)
    far.sendall(b"x")
    assert near.recv(1) == b"x"
    assert descriptors() == before


def test_without_a_descriptor_to_spare_a_connection_is_ended_all_the_same(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair

    def none_left(descriptor: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "dup", none_left)
    before = descriptors()
    assert close_connection(near.fileno(), lambda: True) == "{}:{}".format(*far.getsockname())
    assert far.recv(1) == b""
    assert descriptors() == before
