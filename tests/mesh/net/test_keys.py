"""mesh/net/keys.py: only holders of a key of the mesh may exchange messages with it."""

import contextlib
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.auth
from zmq.utils.monitor import parse_monitor_message

from mesh import wire
from mesh.codes import LinkLoss
from mesh.net.keys import Keys
from tests.loops import on_loop
from tests.mesh.net.processes import LIMIT_MS, envelope, processes

HELLO = wire.FrontendHello(member="frontend-1", host="here", results=())
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of keys."""
    Keys.make(tmp_path / "secret" / "keys")
    return tmp_path / "secret" / "keys"


def present(sock: "zmq.Socket[bytes]", server: bytes, public: bytes, secret: bytes | None) -> None:
    """Sets the keys as any client in any language does."""
    assert secret is not None
    sock.setsockopt(zmq.CURVE_SERVERKEY, server)
    sock.setsockopt(zmq.CURVE_PUBLICKEY, public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_keys_folder_has_a_pair_for_the_mesh_and_one_for_a_client_and_both_may_call(folder: Path) -> None:
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.key*")) == [
        "allowed/client.key",
        "allowed/mesh.key",
        "client.key",
        "client.key_secret",
        "mesh.key",
        "mesh.key_secret",
    ]
    mesh, client = (zmq.auth.load_certificate(folder / f"{name}.key_secret") for name in ("mesh", "client"))
    assert len({*mesh, *client}) == 4
    for name, (public, _) in (("mesh", mesh), ("client", client)):
        assert zmq.auth.load_certificate(folder / "allowed" / f"{name}.key") == (public, None)


def test_nobody_else_on_the_machine_can_read_the_secrets(folder: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (folder, *folder.glob("*.key_secret"))}
    assert modes == {"keys": 0o700, "mesh.key_secret": 0o600, "client.key_secret": 0o600}


def test_a_folder_that_is_there_already_is_left_alone(folder: Path) -> None:
    before = (folder / "mesh.key_secret").read_bytes()
    with pytest.raises(FileExistsError):
        Keys.make(folder)
    assert (folder / "mesh.key_secret").read_bytes() == before


def test_the_meshs_keys_are_read(folder: Path) -> None:
    keys = Keys.read(folder)
    assert (keys.public, keys.secret) == zmq.auth.load_certificate(folder / "mesh.key_secret")
    assert zmq.curve_public(keys.secret) == keys.public


def test_a_folder_without_keys_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"mesh\.key_secret"):
        Keys.read(tmp_path)


def test_a_file_without_a_secret_key_is_refused(folder: Path) -> None:
    shutil.copy(folder / "mesh.key", folder / "mesh.key_secret")
    with pytest.raises(ValueError, match=r"mesh\.key_secret"):
        Keys.read(folder)


# -- who may connect --------------------------------------------------------------------------------------------------


@on_loop
async def test_services_of_the_mesh_talk_to_each_other(folder: Path) -> None:
    async with processes(keys_dir=str(folder)) as made:
        listening = made.port(made.runtime())
        calling = made.link(made.runtime(), listening.addresses)
        calling.link.send(HELLO, [b"x" * 100_000])
        assert await listening.messages(1) == [HELLO]
        assert bytes(listening.mail.items[0].frames[0]) == b"x" * 100_000
        listening.port.send("frontend-1", wire.Introduce())
        assert await calling.messages(1) == [wire.Introduce()]


@on_loop
async def test_a_client_with_an_allowed_key_of_its_own_can_talk(folder: Path) -> None:
    async with processes(keys_dir=str(folder)) as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        server, _ = zmq.auth.load_certificate(folder / "mesh.key")
        present(sock, server, *zmq.auth.load_certificate(folder / "client.key_secret"))
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        assert await listening.messages(1) == [HELLO]


@pytest.mark.parametrize("stranger", ["own key", "wrong server key", "no key"])
@on_loop
async def test_a_stranger_is_refused_and_the_holder_of_a_key_is_not_disturbed(folder: Path, stranger: str) -> None:
    async with processes(keys_dir=str(folder)) as made:
        listening = made.port(made.runtime())
        server, _ = zmq.auth.load_certificate(folder / "mesh.key")
        sock = made.bare(zmq.DEALER, "stranger")
        if stranger == "own key":
            present(sock, server, *zmq.curve_keypair())
        elif stranger == "wrong server key":
            present(sock, zmq.curve_keypair()[0], *zmq.auth.load_certificate(folder / "client.key_secret"))
        # The end that notices reports it: the server that a peer does not speak CURVE, the client that it was rejected.
        listening_for = sock if stranger == "own key" else listening.port.sock
        monitor = listening_for.get_monitor_socket(REFUSED | zmq.EVENT_DISCONNECTED)
        sock.connect(listening.tcp)
        with contextlib.suppress(zmq.Again):  # it may have been refused already
            sock.send(envelope(HELLO), zmq.NOBLOCK)
        assert monitor.poll(LIMIT_MS), "nobody refused the stranger"
        event = parse_monitor_message(monitor.recv_multipart())["event"]
        if stranger == "own key":
            assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        listening_for.disable_monitor()
        monitor.close(0)
        calling = made.link(made.runtime(), listening.addresses)
        calling.link.send(HELLO)
        await listening.messages(1)
        assert {mail.peer for mail in listening.mail.items} == {"frontend-1"}


@on_loop
async def test_a_service_whose_key_is_no_longer_allowed_is_told_so(folder: Path) -> None:
    (folder / "allowed" / "mesh.key").unlink()
    async with processes(keys_dir=str(folder)) as made:
        listening = made.port(made.runtime())
        calling = made.link(made.runtime(), listening.addresses)
        calling.link.send(HELLO)
        assert await calling.lost.count(1) == [("controller-1", LinkLoss.KEY_REFUSED)]
        assert listening.mail.items == []


@on_loop
async def test_a_service_without_keys_cannot_talk_to_a_mesh_that_has_them(folder: Path) -> None:
    async with processes(silence_ms_max=120.0, heartbeat_ms=15.0) as made:
        listening = made.port(made.runtime(keys_dir=str(folder)))
        calling = made.link(made.runtime(), listening.addresses)
        calling.link.send(HELLO)
        ((peer, _),) = await calling.lost.count(1)
        assert peer == "controller-1"
        assert listening.mail.items == []


@on_loop
async def test_closing_the_hub_ends_the_authenticators_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    async with processes(keys_dir=str(folder)) as made:
        here = made.runtime()
        made.port(here)
        made.port(here, "results")
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) - before == set()
    keys: Any = Keys.read(folder)
    keys.stop()  # nothing was guarded, so there is nothing to end
