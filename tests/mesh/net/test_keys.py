"""mesh/net/keys.py: only holders of a key of the mesh may exchange messages with it."""

import asyncio
import contextlib
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.auth
from zmq.utils.monitor import parse_monitor_message

from frontend.client.defaults import read_keys
from mesh import wire
from mesh.codes import LinkLoss
from mesh.errors import SettingsError
from mesh.identities import named
from mesh.net.key_folder import add_key, allowed, revoke
from mesh.net.keys import LOCAL, Keys
from mesh.net.links import REFUSED
from mesh.net.sockets import Hub
from mesh.process.settings import Settings
from mesh.roles import ALL_ROLES, Holder, PortKind, Role, may_call
from tests.loops import LIMIT_S, on_loop
from tests.mesh.net.processes import LIMIT_MS, Calling, Listening, Processes, envelope, messages_of, processes

HELLO = wire.FrontendHello(member="frontend-1", host="here", results=())
MEMBERS = {Role.WORKER: "gpu_worker-1", Role.FRONTEND: "frontend-1", Role.OPERATOR: "operator-1"}


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
    assert {key.name: key.roles for key in allowed(folder)[0]} == {"mesh": ALL_ROLES, "client": {Role.CLIENT}}


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


# -- folders for one each ---------------------------------------------------------------------------------------------


def test_a_folder_for_one_holds_his_pair_and_the_meshs_public_key_and_nothing_secret_of_the_mesh(folder: Path) -> None:
    own = add_key(folder, "alice", (Role.CLIENT,))
    assert sorted(file.name for file in own.iterdir()) == ["mesh.key", "own.key", "own.key_secret"]
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert stat.S_IMODE((own / "own.key_secret").stat().st_mode) == 0o600
    keys, mesh = Keys.read(own), Keys.read(folder)
    assert (keys.server, keys.port_secret) == (mesh.public, None)
    assert mesh.secret not in b"".join(file.read_bytes() for file in own.iterdir())
    (alice,) = (key for key in allowed(folder)[0] if key.name == "alice")
    assert (alice.public, alice.roles) == (keys.public, {Role.CLIENT})


def test_a_folder_of_before_says_no_roles_so_the_meshs_key_has_all_and_others_are_clients(folder: Path) -> None:
    stranger, _ = zmq.curve_keypair()
    (folder / "allowed" / "my laptop.key").write_text(f'curve\n    public-key = "{stranger.decode()}"\n')
    for name in ("mesh", "client"):
        public, _ = zmq.auth.load_certificate(folder / f"{name}.key")
        (folder / "allowed" / f"{name}.key").write_text(f'metadata\ncurve\n    public-key = "{public.decode()}"\n')
    found, faults = allowed(folder)
    assert {key.name: key.roles for key in found} == {
        "mesh": ALL_ROLES, "client": {Role.CLIENT}, "my laptop": {Role.CLIENT}
    }  # fmt: skip
    assert faults == []
    assert [key.holder.name for key in found if " " in key.name] == ["my_laptop"]


@pytest.mark.parametrize(
    "text", ["", "garbage", "\0" * 100_000, 'curve\n    public-key = "short"\n', 'metadata\n    roles = "boss"\n']
)
def test_a_file_that_is_no_key_is_ignored_and_named(folder: Path, text: str) -> None:
    public, _ = zmq.curve_keypair()
    (folder / "allowed" / "bad.key").write_text(
        text + (f'curve\n    public-key = "{public.decode()}"\n' if "boss" in text else "")
    )
    found, faults = allowed(folder)
    assert [key.name for key in found] == ["client", "mesh"]
    assert len(faults) == 1
    assert "bad.key" in faults[0]


@pytest.mark.parametrize("name", ["", "allowed", "mesh", "client", "../x", "a/b", ".x", "x" * 65, "a b"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="--name"):
        add_key(folder, name, (Role.CLIENT,))


@pytest.mark.parametrize("name", ["two words", "\u00a0tab\t", "m\u00fcller", "not utf-8 \udcff", ".key", "x" * 200])
def test_whatever_a_file_of_a_key_is_called_its_holder_can_be_told_to_the_port(folder: Path, name: str) -> None:
    """An exception there would end the process whenever that key calls."""
    (folder / "allowed" / "client.key").rename(folder / "allowed" / f"{name}.key")
    (holder,) = (key.holder for key in allowed(folder)[0] if key.roles == {Role.CLIENT})
    assert Holder.read(holder.written().encode().decode()) == holder
    assert len(holder.name) <= 64


def test_a_name_that_is_taken_is_left_alone(folder: Path) -> None:
    add_key(folder, "alice", (Role.CLIENT,))
    with pytest.raises(FileExistsError):
        add_key(folder, "alice", (Role.OPERATOR,))
    assert next(key.roles for key in allowed(folder)[0] if key.name == "alice") == {Role.CLIENT}


def test_a_revoked_key_is_listed_no_more_and_nobody_can_be_revoked_twice(folder: Path) -> None:
    add_key(folder, "alice", (Role.CLIENT,))
    revoke(folder, "alice")
    assert [key.name for key in allowed(folder)[0]] == ["client", "mesh"]
    for nobody in ("alice", "../mesh"):
        with pytest.raises(ValueError, match="there are: client, mesh"):
            revoke(folder, nobody)


def test_what_was_made_for_a_process_that_only_calls_cannot_listen(folder: Path) -> None:
    own = add_key(folder, "box", (Role.WORKER,))
    hub = Hub(asyncio.new_event_loop(), Keys.read(own))
    with pytest.raises(SettingsError, match=r"no mesh\.key_secret"):
        hub.bind(hub.socket(zmq.ROUTER, size_max=1), "127.0.0.1", 0, "GEARMESH_BROKER_PORT", PortKind.BROKER)
    hub.close()
    hub.loop.close()


# -- which port lets whom in ------------------------------------------------------------------------------------------


async def let_in(made: Processes, kind: PortKind, caller: Path, server: Path) -> bool:
    """Whether a port of this kind takes a message of who calls with the keys in the folder `caller`."""
    listening, calling = made.runtime(keys_dir=str(server)).hub, made.runtime(keys_dir=str(caller)).hub
    outcome: asyncio.Future[bool] = listening.loop.create_future()
    router, dealer = listening.socket(zmq.ROUTER, size_max=10_000), calling.socket(zmq.DEALER, size_max=10_000)
    address = listening.bind(router, "127.0.0.1", 0, "GEARMESH_BROKER_PORT", kind)

    def arrived() -> bool:
        with contextlib.suppress(zmq.Again):
            router.recv_multipart(zmq.NOBLOCK)
            outcome.done() or outcome.set_result(True)
        return False

    def refused(event: int, value: int) -> None:
        assert (event, value) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400)
        outcome.done() or outcome.set_result(False)

    listening.read(router, arrived)
    monitor = calling.monitor(dealer, REFUSED, refused)
    calling.connect(dealer, address, kind, "")
    calling.read(dealer, lambda: False)
    dealer.send(b"here", zmq.NOBLOCK)
    async with asyncio.timeout(LIMIT_S):
        found = await outcome
    dealer.disable_monitor()
    calling.drop(monitor)
    return found


@pytest.mark.parametrize("role", Role)
@on_loop
async def test_a_key_opens_the_ports_of_its_role_and_no_others(folder: Path, role: Role) -> None:
    own = add_key(folder, "somebody", (role,))
    async with processes() as made:
        for kind in PortKind:
            assert await let_in(made, kind, own, folder) is may_call(kind, frozenset((role,))), kind


@on_loop
async def test_the_meshs_own_key_opens_every_port(folder: Path) -> None:
    async with processes() as made:
        assert [await let_in(made, kind, folder, folder) for kind in PortKind] == [True] * 4


async def until_not_heard(listening: Listening, honest: Calling, number: int = 1) -> None:
    """Returns once the port has not heard so many messages; it hears `honest` all the time."""
    while listening.port.not_heard < number:
        honest.link.send(HELLO)
        await listening.mail.count(len(listening.mail.items) + 1)


@pytest.mark.parametrize("pose", ["frontend-1", "controller-1", "operator-1", "gpu_worker-1", "stranger"])
@on_loop
async def test_a_workers_key_speaks_for_a_worker_and_for_nobody_who_registered_with_another(
    folder: Path, pose: str
) -> None:
    own = add_key(folder, "box", (Role.WORKER,))
    registered = {"gpu_worker-1": "the key of another box"}
    async with processes() as made:
        listening = made.port(made.runtime(keys_dir=str(folder)), key_of=lambda member: registered.get(member, ""))
        posing = made.link(made.runtime(keys_dir=str(own)), listening.addresses, pose)
        posing.link.send(HELLO)
        honest = made.link(made.runtime(keys_dir=str(own)), listening.addresses, "gpu_worker-2")
        honest.link.send(HELLO)
        await listening.messages(1)
        await until_not_heard(listening, honest)
        assert {mail.peer for mail in listening.mail.items} == {"gpu_worker-2"}


@on_loop
async def test_who_came_before_the_table_is_heard_and_lost_once_the_table_names_another_key(folder: Path) -> None:
    own = add_key(folder, "box", (Role.WORKER,))
    registered: dict[str, str] = {}
    async with processes() as made:
        listening = made.port(made.runtime(keys_dir=str(folder)), key_of=lambda member: registered.get(member, ""))
        for name in ("gpu_worker-1", "gpu_worker-2"):
            made.link(made.runtime(keys_dir=str(own)), listening.addresses, name).link.send(HELLO)
        assert await listening.messages(2) == [HELLO, HELLO]
        registered |= {"gpu_worker-1": "the key of another box", "gpu_worker-2": Keys.read(own).public.decode()}
        listening.port.recheck()
        assert await listening.lost.count(1) == [("gpu_worker-1", LinkLoss.NOT_ITS_KEY)]
        assert listening.port.knows("gpu_worker-2")


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("number", [0, 1, 10**9])
@on_loop
async def test_another_key_takes_no_connected_members_place_whatever_number_its_link_has(
    folder: Path, registered: bool, number: int
) -> None:
    own, others = (add_key(folder, name, (Role.WORKER,)) for name in ("box", "box-2"))
    known = {"gpu_worker-1": Keys.read(own).public.decode()} if registered else {}
    async with processes() as made:
        listening = made.port(
            made.runtime(keys_dir=str(folder)), me="controller-1", key_of=lambda member: known.get(member, "")
        )
        victim = made.link(made.runtime(keys_dir=str(own)), listening.addresses, "gpu_worker-1")
        victim.link.send(HELLO)
        await listening.messages(1)
        name = named("gpu_worker-1", number, "ab", "controller-1") if number else b"gpu_worker-1"
        rogue = made.bare(zmq.DEALER, name)
        Keys.read(others).present(rogue, PortKind.CONTROL, "controller-1")
        rogue.connect(listening.tcp)
        rogue.send(envelope(wire.Cancel(request=1)))
        await until_not_heard(listening, victim)
        listening.port.send("gpu_worker-1", wire.Introduce())
        assert await victim.messages(1) == [wire.Introduce()]
        assert all(message == HELLO for message in messages_of(listening.mail.items))
        assert rogue.poll(0) == 0
        assert (listening.port.superseded, listening.lost.items) == (0, [])


@on_loop
async def test_a_member_in_this_process_cannot_be_posed_as_from_outside(folder: Path) -> None:
    async with processes(keys_dir=str(folder)) as made:
        here = made.runtime()
        listening = made.port(here)
        inside = made.link(here, listening.addresses, "frontend-1")
        inside.link.send(HELLO)
        await listening.messages(1)
        outside = made.link(made.runtime(), (listening.tcp,), "frontend-1")
        outside.link.send(HELLO)
        await until_not_heard(listening, inside)
        listening.port.send("frontend-1", wire.Introduce())
        assert await inside.messages(1) == [wire.Introduce()]
        assert outside.mail.items == []


@on_loop
async def test_roles_that_change_in_place_count_for_those_who_are_connected_too(folder: Path) -> None:
    own = add_key(folder, "box", (Role.WORKER, Role.OPERATOR))
    file = folder / "allowed" / "box.key"
    async with processes() as made:
        listening = made.port(made.runtime(keys_dir=str(folder)))
        made.link(made.runtime(keys_dir=str(own)), listening.addresses, "operator-1").link.send(HELLO)
        await listening.messages(1)
        file.write_text(file.read_text().replace("operator,worker", "client"))
        assert await listening.lost.count(1) == [("operator-1", LinkLoss.NOT_ITS_KEY)]
        again = made.link(made.runtime(keys_dir=str(own)), listening.addresses, "gpu_worker-2")
        assert await again.lost.count(1) == [("controller-1", LinkLoss.KEY_REFUSED)]


@on_loop
async def test_a_revoked_key_connects_no_more_and_its_connections_are_heard_no_more(folder: Path) -> None:
    own = add_key(folder, "box", (Role.WORKER,))
    async with processes() as made:
        listening = made.port(made.runtime(keys_dir=str(folder)))
        calling = made.link(made.runtime(keys_dir=str(own)), listening.addresses, "gpu_worker-1")
        calling.link.send(HELLO)
        await listening.messages(1)
        revoke(folder, "box")
        again = made.link(made.runtime(keys_dir=str(own)), listening.addresses, "gpu_worker-2")
        assert await again.lost.count(1) == [("controller-1", LinkLoss.KEY_REFUSED)]
        assert await listening.lost.count(1) == [("gpu_worker-1", LinkLoss.NOT_ITS_KEY)]
        heard = len(listening.mail.items)
        calling.link.send(HELLO)
        honest = made.link(made.runtime(keys_dir=str(folder)), listening.addresses, "gpu_worker-3")
        await until_not_heard(listening, honest, 2)
        assert {mail.peer for mail in listening.mail.items[heard:]} == {"gpu_worker-3"}


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
async def test_a_program_with_an_allowed_key_of_its_own_can_talk(folder: Path) -> None:
    async with processes(keys_dir=str(folder)) as made:
        listening = made.port(made.runtime())
        sock = made.bare(zmq.DEALER, "frontend-1")
        server, _ = zmq.auth.load_certificate(folder / "mesh.key")
        own = add_key(folder, "program", (Role.FRONTEND,))
        present(sock, server, *zmq.auth.load_certificate(own / "own.key_secret"))
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
        assert await asyncio.to_thread(monitor.poll, LIMIT_MS), "nobody refused the stranger"
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
async def test_keys_need_no_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    async with processes(keys_dir=str(folder)) as made:
        here = made.runtime()
        made.port(here)
        made.port(here, "results", kind=PortKind.RESULTS)
        assert set(threading.enumerate()) == before


# -- without a folder of keys -----------------------------------------------------------------------------------------


def test_the_pair_in_data_dir_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    data = tmp_path / "a" / "data"
    found: list[Keys] = []
    threads = [threading.Thread(target=lambda: found.append(Keys.of_data_dir(data, make=True))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({keys.secret for keys in found}) == 1
    assert stat.S_IMODE((data / LOCAL).stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert [file.name for file in data.iterdir()] == [LOCAL], "nothing is left beside it"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666])
def test_a_pair_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    Keys.of_data_dir(tmp_path, make=True)
    (tmp_path / LOCAL).chmod(mode)
    with pytest.raises(SettingsError, match=r"others can use .*mesh\.key_secret"):
        Settings(data_dir=tmp_path).mesh_keys(make=True)


def test_files_that_are_not_there_or_no_keys_are_told_of_with_what_to_do(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"there is no .*mesh\.key_secret; `gearmesh keys .*nowhere` makes"):
        Settings(keys_dir=nowhere).keys()
    with pytest.raises(ValueError, match=r"No such file .*nowhere/mesh\.key_secret"):
        read_keys(Path(nowhere))
    (tmp_path / LOCAL).write_text("no key")
    (tmp_path / LOCAL).chmod(0o600)
    with pytest.raises(SettingsError, match=r"No public key found .*: remove it and start every process"):
        Settings(data_dir=tmp_path).mesh_keys(make=True)


def test_an_operator_who_has_no_pair_is_told_what_to_set_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data_dir=.*GEARMESH_DATA_DIR"):
        Settings(data_dir=tmp_path).mesh_keys(make=False)
    assert list(tmp_path.iterdir()) == []


def elsewhere(folder: Path) -> Keys:
    return Keys.of_data_dir(folder / "another", make=True)


PRESENTED: dict[str, Callable[[Any, Keys, Path], None]] = {
    "nothing": lambda sock, keys, folder: None,
    "the keys of another data_dir": lambda sock, keys, folder: elsewhere(folder).present(
        sock, PortKind.CONTROL, "controller-1"
    ),
    "a ticket for another port": lambda sock, keys, folder: keys.present(sock, PortKind.RESULTS, "controller-1"),
    "a ticket for a member that is gone": lambda sock, keys, folder: keys.present(
        sock, PortKind.CONTROL, "controller-0"
    ),
    "CURVE": lambda sock, keys, folder: keys.present(sock, PortKind.BROKER),
}


@pytest.mark.parametrize("shown", PRESENTED)
@on_loop
async def test_without_the_pair_of_data_dir_nobody_is_let_in_at_an_internal_port(tmp_path: Path, shown: str) -> None:
    async with processes() as made:
        listening = Listening(made.runtime(), "control", me="controller-1")
        sock = made.bare(zmq.DEALER, "gpu_worker-1")
        PRESENTED[shown](sock, made.keys, tmp_path)
        monitor = sock.get_monitor_socket(REFUSED)
        sock.connect(listening.tcp)
        with contextlib.suppress(zmq.Again):  # it may have been refused already
            sock.send(envelope(HELLO), zmq.NOBLOCK)
        assert await asyncio.to_thread(monitor.poll, LIMIT_MS), "nobody refused the stranger"
        sock.disable_monitor()
        monitor.close(0)
        made.link(made.runtime(), listening.addresses).link.send(HELLO)
        await listening.messages(1)
        assert {mail.peer for mail in listening.mail.items} == {"frontend-1"}


@on_loop
async def test_a_link_to_a_member_that_is_gone_is_told_that_another_one_listens_there() -> None:
    async with processes() as made:
        listening = Listening(made.runtime(), "control", me="controller-2")
        calling = made.link(made.runtime(), listening.addresses)
        calling.link.send(HELLO)
        assert await calling.lost.count(1) == [("controller-1", LinkLoss.REPLACED)]
        assert listening.mail.items == []


@on_loop
async def test_whoever_listens_in_the_place_of_the_broker_learns_nothing(tmp_path: Path) -> None:
    async with processes() as made:
        squatter = made.runtime(keys_dir="").hub
        squatter.keys = elsewhere(tmp_path)
        router = made.bare(zmq.ROUTER)
        other = elsewhere(tmp_path)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, other.secret)
        router.setsockopt(zmq.CURVE_PUBLICKEY, other.public)
        router.bind("tcp://127.0.0.1:*")
        monitor = router.get_monitor_socket(REFUSED)
        calling = made.link(
            made.runtime(), (router.getsockopt_string(zmq.LAST_ENDPOINT),), "frontend-1", "broker", to=PortKind.BROKER
        )
        calling.link.send(HELLO)
        assert await asyncio.to_thread(monitor.poll, LIMIT_MS)
        event = parse_monitor_message(monitor.recv_multipart())["event"]
        assert event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        router.disable_monitor()
        monitor.close(0)
        assert not router.poll(0)


@on_loop
async def test_clients_need_no_keys_where_the_mesh_has_no_folder_of_them() -> None:
    async with processes() as made:
        listening = made.port(made.trusting(), "clients", kind=PortKind.CLIENTS)
        sock = made.bare(zmq.DEALER, "frontend-1")
        sock.connect(listening.tcp)
        sock.send(envelope(HELLO))
        assert await listening.messages(1) == [HELLO]
