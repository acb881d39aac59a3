"""broker/service.py: a real broker, called over its port."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from broker import keeping
from broker.core import effect
from broker.service import LINES_S
from broker.store import CatalogueStore
from mesh import wire
from mesh.errors import AddressInUse
from mesh.process.repository import look, scan_repository
from mesh.roles import PortKind
from scripts.rigs.meshes import until
from tests.broker.full_disks import full_disk
from tests.disks import refuse
from tests.loops import LIMIT_S, on_loop
from tests.mesh.net.brokers import SPEC, Broker, Caller, Registered, members, package
from tests.mesh.net.processes import Processes, envelope, processes
from tests.messages import names

PATIENT = {"heartbeat_ms": 15.0, "silence_ms_max": 60_000.0}  # no peer is lost for its silence
QUICK = {"heartbeat_ms": 15.0, "silence_ms_max": 500.0}
SILENCE = 34  # heartbeats that are not heard of somebody who is lost

both_makes = pytest.mark.parametrize("make", ["zeromq", "memory"])


class Mesh:
    """A broker with a controller and an operator that call it. Model m has versions 1 and 2; version 1 is current."""

    def __init__(self, made: Processes, folder: Path, make: str) -> None:
        self.made, self.folder = made, folder
        package(folder / "repository", "m", "1")
        self.broker = Broker(made, folder)
        self.controller = self.caller("controller-1", make)
        self.operator = self.caller("operator-1", make)

    def caller(self, identity: str, make: str = "zeromq") -> Caller:
        runtime = self.broker.runtime if make == "memory" else self.made.runtime()
        return Caller(runtime, self.broker.addresses, identity)

    def report(self, ref: str, *faults: str) -> None:
        self.controller.link.send(wire.PrepareReport(ref=ref, ok=not faults, spec=SPEC, faults=faults))

    async def begin(self) -> None:
        self.controller.register("controller")
        self.report("m:1")
        await self.controller.table(lambda table: table.models[0].current == "1")
        package(self.folder / "repository", "m", "2")


@contextlib.asynccontextmanager
async def mesh(folder: Path, make: str = "zeromq", **settings: float) -> AsyncIterator[Mesh]:
    async with processes(**{**PATIENT, **settings}) as made:
        begun = Mesh(made, folder, make)
        try:
            await begun.begin()
            yield begun
        finally:
            begun.broker.stop()


def told(replies: list[wire.CallReply]) -> list[tuple[int, bool, tuple[str, ...]]]:
    """(call, ok, faults) of each reply."""
    return [(reply.call, reply.ok, reply.faults) for reply in replies]


# -- the repository ---------------------------------------------------------------------------------------------------


def test_packages_are_folders_with_a_model_toml_and_versions_come_in_order(tmp_path: Path) -> None:
    package(tmp_path, "m", "10", "9", "1", "v2", "1.5", "3" * 19)
    package(tmp_path, "empty")
    package(tmp_path, ".hidden", "1")
    package(tmp_path, "x" * 65, "1")
    (tmp_path / "no toml" / "1").mkdir(parents=True)
    (tmp_path / "notoml" / "1").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "m" / "2").write_text("a file")
    assert scan_repository(tmp_path) == {"empty": [], "m": ["1", "9", "10"]}


def test_what_looks_like_a_version_and_is_none_is_found_with_the_reason(tmp_path: Path) -> None:
    package(tmp_path, "m", "1")
    for version in ("2", "3", "\u00b2"):
        (tmp_path / "own" / version).mkdir(parents=True)
    (tmp_path / "own" / "2" / "model.toml").write_text("")
    found = look(tmp_path)
    assert found.versions == {"m": ["1"], "own": ["2"]}
    assert list(found.faults) == ["own:3"]
    assert str(tmp_path / "own" / "3") in found.faults["own:3"]


def test_a_repository_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert scan_repository(tmp_path / "nowhere") == {}


# -- operators --------------------------------------------------------------------------------------------------------


@both_makes
@on_loop
async def test_a_deployment_is_answered_once_it_is_in_effect(make: str, tmp_path: Path) -> None:
    async with mesh(tmp_path, make) as at:
        at.operator.link.send(wire.Deploy(call=5, name="m", version=None))
        table = await at.controller.table(lambda table: table.models[0].target == "2")
        assert table.models[0].current == "1"  # which serves in the meantime
        assert at.operator.replies() == []
        at.report("m:2")
        await at.operator.mail.until(lambda _: at.operator.replies())
        assert told(at.operator.replies()) == [(5, True, ())]
        assert "m:2" in at.operator.replies()[0].message
        table = await at.controller.table(lambda table: table.models[0].current == "2")
        assert (table.models[0].target, table.models[0].spec, table.models[0].owner) == (None, SPEC, "controller-1")


@on_loop
async def test_what_cannot_be_written_takes_effect_all_the_same_and_the_operator_is_told(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        with full_disk(tmp_path / "data"):
            at.operator.link.send(wire.Undeploy(call=5, name="m"))
            await at.operator.mail.until(lambda _: at.operator.replies())
            (answer,) = at.operator.replies()
            assert not answer.ok
            assert "m" in answer.message
            await at.controller.table(lambda table: not table.models)
        at.operator.link.send(wire.Deploy(call=6, name="m", version="1"))
        await at.controller.table(lambda table: table.models and table.models[0].target == "1")
        assert len(at.operator.replies()) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=os.strerror)
@on_loop
async def test_a_broker_whose_disk_takes_nothing_serves_and_says_what_will_not_last(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, tmp_path / "data", "mkdir", number)
    async with mesh(tmp_path) as at:
        reply = await at.operator.ask(wire.Undeploy(call=5, name="m"))
        assert (reply.ok, reply.code) == (False, "not_saved")
        assert names(reply.message, os.strerror(number), "catalogue.sqlite", "GEARMESH_DATA_DIR")
        await at.controller.table(lambda table: not table.models)  # it is in effect


@on_loop
async def test_a_disk_that_takes_something_again_has_everything_without_another_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "DISK_S", 0.01)
    file = tmp_path / "data" / "catalogue.sqlite"
    with monkeypatch.context() as full:
        refuse(full, tmp_path / "data", "mkdir", errno.ENOSPC)
        broker = contextlib.AsyncExitStack()
        at = await broker.enter_async_context(mesh(tmp_path))
        assert (await at.operator.ask(wire.Undeploy(call=5, name="m"))).code == "not_saved"
        assert not file.exists()
    async with broker:
        await until(file.exists)
        assert (await at.operator.ask(wire.DropApp(call=6, name="a"))).code != "not_saved"
    store = CatalogueStore(file)
    with contextlib.closing(store):
        assert not store.open().models["m"].deployed


@on_loop
async def test_a_broker_on_a_damaged_catalogue_starts_with_its_copy(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        assert (await at.operator.ask(wire.Undeploy(call=5, name="m"))).ok
    (file,) = (tmp_path / "data").glob("*.sqlite")
    file.write_bytes(b"not a database, " * 100)
    async with processes(**PATIENT) as made:
        broker = Broker(made, tmp_path)
        try:
            caller = Caller(made.runtime(), broker.addresses, "controller-1")
            caller.register("controller")
            table = await caller.table(lambda table: table.members)
            assert not table.models  # undeployed it stays: the repository has it, but so has the copy
        finally:
            broker.stop()
    assert file.with_name(f"{file.name}.damaged-1").read_bytes() == b"not a database, " * 100


@both_makes
@on_loop
async def test_a_deployment_that_fails_says_why_and_the_old_version_stays(make: str, tmp_path: Path) -> None:
    async with mesh(tmp_path, make) as at:
        at.operator.link.send(wire.Deploy(call=5, name="m", version="2"))
        await at.controller.table(lambda table: table.models[0].target == "2")
        at.report("m:2", "no graph", "bad weights")
        await at.operator.mail.until(lambda _: at.operator.replies())
        assert told(at.operator.replies()) == [(5, False, ("no graph", "bad weights"))]
        table = await at.controller.table(lambda table: table.models[0].target is None)
        assert (table.models[0].current, table.models[0].fault) == ("1", "no graph; bad weights")


@on_loop
async def test_rollback_and_undeploy_take_effect(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.operator.link.send(wire.Deploy(call=1, name="m", version="2"))
        await at.controller.table(lambda table: table.models[0].target == "2")
        at.report("m:2")
        await at.controller.table(lambda table: table.models[0].current == "2")
        at.operator.link.send(wire.Rollback(call=2, name="m"))
        await at.controller.table(lambda table: table.models[0].target == "1")
        at.report("m:1")
        await at.controller.table(lambda table: table.models[0].current == "1")
        assert (await at.operator.ask(wire.Undeploy(call=3, name="m"))).ok
        assert (await at.controller.table(lambda table: not table.models)).models == ()
        assert told(at.operator.replies()) == [(1, True, ()), (2, True, ()), (3, True, ())]
        for reply, ref in zip(at.operator.replies(), ("m:2", "m:1", "m"), strict=True):
            assert ref in reply.message


@pytest.mark.parametrize(
    ("message", "ok", "field", "named"),
    [
        (wire.Deploy(call=5, name="x", version=None), False, "name", ("'x'", "m")),
        (wire.Deploy(call=5, name="../x", version=None), False, "name", ("'../x'", "m")),
        (wire.Deploy(call=5, name="m", version="3"), False, "version", ("'m'", "'3'", "1, 2")),
        (wire.Deploy(call=5, name="m", version="1"), True, "", ("m:1",)),
        (wire.Rollback(call=5, name="x"), False, "name", ("'x'",)),
        (wire.Rollback(call=5, name="m"), False, "name", ("'m'", "'1'")),
        (wire.Undeploy(call=5, name="x"), False, "name", ("'x'", "m")),
        (wire.DropApp(call=5, name="a"), False, "app", ("'a'",)),
    ],
)
@on_loop
async def test_what_cannot_be_done_is_answered_at_once_with_the_call_it_was(
    message: Any, ok: bool, field: str, named: tuple[str, ...], tmp_path: Path
) -> None:
    async with mesh(tmp_path) as at:
        answer = await at.operator.ask(message)
        assert (answer.call, answer.ok, answer.field, answer.faults) == (5, ok, field, ())
        assert names(answer.message, *named)


@on_loop
async def test_a_package_that_was_put_there_later_can_be_deployed(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        package(tmp_path / "repository", "n", "1")
        at.operator.link.send(wire.Deploy(call=5, name="n", version=None))
        table = await at.controller.table(lambda table: len(table.models) == 2)
        assert [(model.name, model.target) for model in table.models] == [("m", None), ("n", "1")]


@on_loop
async def test_an_operator_who_asks_for_the_table_gets_it_and_then_the_reply(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        assert (await at.operator.ask(wire.GetTable(call=5))).ok
        (table, _) = (message for message in at.operator.said() if message != wire.Introduce())  # to its heartbeats
        assert members(table) == ["controller-1"]  # an operator is no member
        assert table == at.controller.tables()[-1]


@on_loop
async def test_an_operator_who_left_is_not_answered_and_the_deployment_goes_on(tmp_path: Path) -> None:
    async with mesh(tmp_path, **QUICK) as at:
        sock = at.made.insider(zmq.DEALER, "operator-2", PortKind.BROKER)
        sock.connect(at.broker.addresses[-1])
        sock.send(envelope(wire.Deploy(call=5, name="m", version="2")))
        await at.controller.table(lambda table: table.models[0].target == "2")
        while not sock.poll(0):
            await at.controller.mail.count(len(at.controller.mail.items) + 1)
        await at.controller.mail.count(len(at.controller.mail.items) + 2 * SILENCE)  # it was silent for too long
        at.report("m:2")
        await at.controller.table(lambda table: table.models[0].current == "2")
        said = []
        while sock.poll(0):
            said += msgspec.msgpack.decode(sock.recv())[3]
        assert {message[0] for message in said} == {wire.Heartbeat.__struct_config__.tag}, "no reply"


# -- services ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_silent_service_leaves_the_table(tmp_path: Path) -> None:
    async with mesh(tmp_path, **QUICK) as at:
        sock = at.made.insider(zmq.DEALER, "frontend-1", PortKind.BROKER)
        sock.connect(at.broker.addresses[-1])
        member = wire.Member(id="frontend-1", role="frontend", host="here")
        sock.send(envelope(wire.Register(member=member)))
        await at.controller.table(lambda table: "frontend-1" in members(table))
        await at.controller.table(lambda table: "frontend-1" not in members(table))


@on_loop
async def test_a_heartbeat_of_an_unknown_service_is_answered_with_an_introduction(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        stranger = at.caller("frontend-9")
        stranger.link.send(wire.Heartbeat())
        await stranger.mail.until(lambda _: stranger.said())
        assert stranger.said()[0] == wire.Introduce()


@on_loop
async def test_an_operator_whose_call_is_not_known_is_told_so_and_no_other(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        package(tmp_path / "repository", "m", "2")
        at.operator.link.send(wire.Deploy(call=1, name="m", version="2"))
        await at.operator.ask(wire.GetTable(call=2))
        before = at.operator.said().count(wire.Introduce())  # to heartbeats that came before its call
        at.operator.link.send(wire.Heartbeat())
        await at.operator.ask(wire.GetTable(call=3))
        assert at.operator.said().count(wire.Introduce()) == before
        at.controller.link.send(wire.PrepareReport(ref="m:2", ok=True, spec=SPEC))
        await at.operator.mail.until(lambda _: any(reply.call == 1 for reply in at.operator.replies()))
        at.operator.link.send(wire.Heartbeat())
        await at.operator.ask(wire.GetTable(call=4))
        assert at.operator.said().count(wire.Introduce()) > before


@on_loop
async def test_a_service_that_says_goodbye_leaves_at_once(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        frontend = at.caller("frontend-1")
        frontend.register("frontend")
        await at.controller.table(lambda table: len(table.members) == 2)
        frontend.link.send(wire.Goodbye())
        table = await at.controller.table(lambda table: len(table.members) == 1)
        assert members(table) == ["controller-1"]


@on_loop
async def test_a_member_that_registers_again_unchanged_still_gets_a_table(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        before = len(at.controller.tables())
        at.controller.register("controller")
        await at.controller.mail.until(lambda _: len(at.controller.tables()) > before)


@on_loop
async def test_what_changes_in_one_turn_makes_one_table(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        frontend = at.caller("frontend-1")
        frontend.register("frontend")
        for _ in range(5):
            frontend.register("frontend")
        await frontend.table()
        await frontend.ask(wire.GetTable(call=1))
        assert len(frontend.tables()) == 2  # one for all six changes, and the one that was asked for


@on_loop
async def test_a_report_of_a_version_that_nobody_wants_changes_no_model(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        before = (await at.controller.table()).models
        at.report("m:7")
        at.report("x:1", "no such package")
        await at.operator.ask(wire.GetTable(call=1))
        assert at.operator.tables()[-1].models == before


# -- applications -----------------------------------------------------------------------------------------------------


@on_loop
async def test_an_application_reaches_every_member_before_its_maker_is_told(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        frontend = at.caller("frontend-1")
        frontend.register("frontend")
        await frontend.table()
        definition = {"name": "a", "models": ["m"], "slo_ms": 20}
        answer = await frontend.ask(wire.PutApp(call=5, definition=definition, create=True))
        assert (answer.ok, answer.revision) == (True, 1)
        assert frontend.said()[-2].apps == (wire.AppEntry(name="a", definition=definition, revision=1, created=1),)
        assert (await at.controller.table(lambda table: table.apps)).apps == frontend.said()[-2].apps
        assert (await frontend.ask(wire.DropApp(call=6, name="a"))).ok
        assert frontend.said()[-2].apps == ()


@pytest.mark.parametrize("models", [5, [["m"]]])
@on_loop
async def test_an_application_that_makes_no_sense_is_answered_and_nobody_is_disturbed(
    models: object, tmp_path: Path
) -> None:
    async with mesh(tmp_path) as at:
        answer = await at.operator.ask(wire.PutApp(call=5, definition={"name": "a", "models": models}, create=True))
        assert (answer.call, answer.ok, answer.field) == (5, False, "app.models")
        assert (await at.operator.ask(wire.GetTable(call=6))).ok


# -- restarts ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_the_catalogue_outlives_the_broker_and_later_tables_have_higher_epochs(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.operator.link.send(wire.Deploy(call=1, name="m", version="2"))
        before = await at.controller.table(lambda table: table.models[0].target == "2")
        at.broker.stop()
        again = Broker(at.made, tmp_path)
        operator = Caller(at.made.runtime(), again.addresses, "operator-2")
        await operator.ask(wire.GetTable(call=1))
        (table,) = operator.tables()
        assert [(model.name, model.current, model.target) for model in table.models] == [("m", "1", "2")]
        assert table.epoch > before.epoch
        assert table.models[0].spec == SPEC
        again.stop()


@pytest.mark.parametrize("catalogue", ["kept", "lost"])
@pytest.mark.parametrize("set_back_s", [0.0, 3600.0, 1e12])
@on_loop
async def test_a_broker_whose_clock_was_set_back_is_listened_to_all_the_same(
    set_back_s: float, catalogue: str, tmp_path: Path
) -> None:
    async with processes(**QUICK) as made:
        package(tmp_path / "repository", "m", "1")
        before = Broker(made, tmp_path)
        services = [
            Registered(made.runtime(), before.addresses, f"{role}-1", role)
            for role in ("controller", "gpu_worker", "frontend")
        ]
        for service in services:
            service.registrar.start()
        tables = [await service.table(lambda table: len(table.members) == 3) for service in services]
        services[0].registrar.shard_epoch = services[1].registrar.shard_epoch = tables[0].shards["controller-1"]
        before.stop()
        if catalogue == "lost":
            shutil.rmtree(tmp_path / "data")
        again = Broker(made, tmp_path, before.number, lambda: time.time() - set_back_s)
        last = max(table.epoch for table in tables)
        for service in services:
            table = await service.table(lambda table: table.epoch > last and len(table.members) == 3)
            assert table.shards == tables[0].shards
            assert table.workers == {"gpu_worker-1": "controller-1"}
        for service in services:
            service.registrar.stop()
        again.stop()


@on_loop
async def test_a_worker_obeys_a_controller_that_registered_first_at_a_broker_that_knew_nothing(tmp_path: Path) -> None:
    async with processes(**QUICK) as made:
        broker = Broker(made, tmp_path, wall_s=lambda: 0.0)
        controller = Registered(made.runtime(), broker.addresses, "controller-2", "controller")
        worker = Registered(made.runtime(), broker.addresses, "gpu_worker-1", "gpu_worker")
        controller.registrar.start()
        first = await controller.table(lambda table: table.shards)
        assert first.shards["controller-2"] < 5000
        worker.registrar.shard_epoch = 5000  # of a controller that is gone
        worker.registrar.start()
        tables = [await service.table(lambda table: table.workers) for service in (controller, worker)]
        assert all(table.shards["controller-2"] > 5000 for table in tables)
        for service in (controller, worker):
            service.registrar.stop()
        broker.stop()


@on_loop
async def test_epochs_go_on_above_all_that_were_reserved_however_the_clock_goes(tmp_path: Path) -> None:
    async with processes(**PATIENT) as made:
        last = 0
        for wall_s in (2e9, 1e9, 3e9, 0.0):
            broker = Broker(made, tmp_path, wall_s=lambda: wall_s)  # noqa: B023  # it is called at once
            operator = Caller(made.runtime(), broker.addresses, "operator-1")
            await operator.ask(wire.GetTable(call=1))
            epoch = operator.tables()[0].epoch
            assert epoch > last
            last = epoch
            broker.stop()


@on_loop
async def test_a_package_that_came_while_the_broker_was_down_is_deployed(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.broker.stop()
        package(tmp_path / "repository", "n", "1", "2")
        again = Broker(at.made, tmp_path)
        operator = Caller(at.made.runtime(), again.addresses, "operator-2")
        await operator.ask(wire.GetTable(call=1))
        assert [(model.name, model.target) for model in operator.tables()[0].models] == [("m", None), ("n", "2")]
        again.stop()


@on_loop
async def test_a_second_broker_on_the_same_port_says_which_setting_to_change(tmp_path: Path) -> None:
    async with processes(**PATIENT) as made:
        broker = Broker(made, tmp_path / "one")
        with pytest.raises(AddressInUse, match="GEARMESH_BROKER_PORT"):
            Broker(made, tmp_path / "two", broker.number)
        broker.stop()


@on_loop
async def test_a_stopped_broker_drains_at_once_and_leaves_its_port(tmp_path: Path) -> None:
    async with processes(**PATIENT) as made:
        broker = Broker(made, tmp_path)
        assert broker.service.drain() is True
        broker.stop()
        Broker(made, tmp_path, broker.number).stop()


# -- versions and their contents --------------------------------------------------------------------------------------


@both_makes
@on_loop
async def test_a_reply_that_waits_for_frontends_leaves_when_the_broker_stops(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "HELD_S", LIMIT_S)
    async with mesh(tmp_path, make) as at:
        frontend = at.caller("frontend-1")
        frontend.register("frontend")
        await frontend.table()
        at.operator.link.send(wire.Undeploy(call=5, name="m"))
        await frontend.table(lambda table: not table.models)  # it never says that it has it
        assert at.operator.replies() == []
        at.broker.service.stop()
        await at.operator.mail.until(lambda _: at.operator.replies())
        assert told(at.operator.replies()) == [(5, True, ())]
        at.broker.running = False


@on_loop
async def test_a_content_travels_from_the_first_report_into_the_table_and_a_second_one_is_refused(
    tmp_path: Path,
) -> None:
    async with mesh(tmp_path) as at:
        at.operator.link.send(wire.Deploy(call=5, name="m", version="2"))
        table = await at.controller.table(lambda table: table.models[0].target == "2")
        tries = table.models[0].tries
        proposal = wire.PrepareReport(ref="m:2", ok=True, spec=SPEC, content="A", ready=False, tries=tries)
        at.controller.link.send(proposal)
        table = await at.controller.table(lambda table: table.models[0].contents == {"2": "A"})
        assert (table.models[0].current, table.models[0].target) == ("1", "2")
        at.controller.link.send(wire.PrepareReport(ref="m:2", ok=True, spec=SPEC, content="B", tries=tries))
        await at.operator.mail.until(lambda _: at.operator.replies())
        (answer,) = at.operator.replies()
        assert (answer.ok, answer.code) == (False, "content_changed")
        table = await at.controller.table(lambda table: table.models[0].target is None)
        assert (table.models[0].current, table.models[0].fault_code) == ("1", "content_changed")


@on_loop
async def test_a_report_that_says_nothing_new_makes_no_new_table(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        epoch = (await at.controller.table()).epoch
        for _ in range(3):
            at.report("m:1")
        at.controller.link.send(wire.GetTable(call=7))
        await at.controller.mail.until(lambda _: at.controller.replies())
        assert at.controller.tables()[-1].epoch == epoch


@on_loop
async def test_a_claimed_number_is_known_to_a_broker_that_is_started_again(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        first = await at.operator.ask(wire.ClaimVersion(call=5, name="f", content="A"))
        assert (first.ok, first.version) == (True, "1")
        at.broker.stop()
        at.broker = Broker(at.made, tmp_path, at.broker.number)
        asker = at.caller("claim-1")
        second = await asker.ask(wire.ClaimVersion(call=6, name="f", content="B"))
        assert (second.ok, second.version) == (True, "2")
        refused = await asker.ask(wire.ClaimVersion(call=7, name="f", content="B", version="1"))
        assert (refused.ok, refused.code, refused.version) == (False, "version_exists", "")


# -- containers that start --------------------------------------------------------------------------------------------


@on_loop
async def test_lines_of_starting_containers_make_at_most_one_table_a_second(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        state = wire.ChildState(model="f", serves=False, for_s=0.0)
        member = wire.Member(id="container-1", role="container", host="here", child=state)
        container = at.caller("container-1")
        container.link.send(wire.Register(member=member))
        await at.controller.table(lambda table: "container-1" in members(table))
        before = len(at.controller.tables())
        for number in range(50):
            state = msgspec.structs.replace(state, line=f"line {number}")
            container.link.send(wire.Register(member=msgspec.structs.replace(member, child=state)))
        table = await at.controller.table(lambda table: any(m.child and m.child.line for m in table.members))
        (child,) = [member.child for member in table.members if member.child is not None]
        assert child.line == "line 49"
        assert len(at.controller.tables()) == before + 1
        assert child.for_s >= LINES_S / 2  # as old as it is by now
        served = msgspec.structs.replace(state, serves=True, line="")
        container.link.send(wire.Register(member=msgspec.structs.replace(member, child=served)))
        await at.controller.table(lambda table: any(m.child and m.child.serves for m in table.members))
