"""mesh/net/registrar.py: a service's side of the broker, against a real broker."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from mesh import wire
from mesh.process.runtime import Runtime
from tests.loops import Told, on_loop
from tests.mesh.net.brokers import SPEC, Broker, Registered, members, package
from tests.mesh.net.processes import Processes, processes

PATIENT = {"heartbeat_ms": 15.0, "silence_ms_max": 60_000.0}  # no peer is lost for its silence
QUICK = {"heartbeat_ms": 15.0, "silence_ms_max": 150.0}

both_makes = pytest.mark.parametrize("make", ["zeromq", "memory"])


@contextlib.asynccontextmanager
async def mesh(folder: Path, **settings: float) -> AsyncIterator[tuple[Processes, Broker]]:
    """A broker whose repository holds version 1 of model m."""
    package(folder / "repository", "m", "1")
    async with processes(**{**QUICK, **settings}) as made:
        broker = Broker(made, folder)
        try:
            yield made, broker
        finally:
            broker.stop()


def process(made: Processes, broker: Broker, make: str) -> Runtime:
    return broker.runtime if make == "memory" else made.runtime()


@both_makes
@on_loop
async def test_whoever_registers_gets_the_table_with_itself_in_it(make: str, tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        service = Registered(process(made, broker, make), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        table = await service.table()
        assert members(table) == ["frontend-1"]
        assert table.models == (wire.ModelEntry(name="m", current=None, target="1", versions=("1",), owner=None),)
        assert service.registrar.table == table
        service.registrar.stop()


@both_makes
@on_loop
async def test_everybody_gets_a_newer_table_when_somebody_comes_or_leaves(make: str, tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        first = Registered(process(made, broker, make), broker.addresses, "frontend-1", "frontend")
        first.registrar.start()
        await first.table()
        second = Registered(process(made, broker, make), broker.addresses, "controller-1", "controller")
        second.registrar.start()
        table = await first.table(lambda table: len(table.members) == 2)
        assert await second.table(lambda theirs: theirs.epoch >= table.epoch) == table
        assert table.models[0].owner == "controller-1"
        assert list(table.shards) == ["controller-1"]
        second.registrar.stop()
        left = await first.table(lambda table: len(table.members) == 1)
        assert (members(left), left.shards, left.models[0].owner) == (["frontend-1"], {}, None)
        epochs = [table.epoch for table in first.tables.items]
        assert epochs == sorted(set(epochs))
        first.registrar.stop()


@on_loop
async def test_a_service_may_start_before_the_broker(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        broker.stop()
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        assert service.registrar.send(wire.GetTable(call=1)) is True  # queued for the broker
        again = Broker(made, tmp_path, broker.number)
        assert members(await service.table()) == ["frontend-1"]
        service.registrar.stop()
        again.stop()


@on_loop
async def test_a_service_that_starts_long_before_the_broker_keeps_calling(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        broker.stop()
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", broker.number)))
            service.registrar.start()
            for _ in range(3):  # two silences too long have passed then
                caller, _ = await asyncio.to_thread(deaf.accept)
                stack.enter_context(caller)
        again = Broker(made, tmp_path, broker.number)
        assert members(await service.table()) == ["frontend-1"]
        service.registrar.stop()
        again.stop()


@on_loop
async def test_everybody_comes_back_when_the_broker_does_and_the_catalogue_is_as_it_was(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        services = [
            Registered(made.runtime(), broker.addresses, f"{role}-1", role) for role in ("controller", "gpu_worker")
        ]
        for service in services:
            service.registrar.start()
        controller, worker = services
        before = await controller.table(lambda table: table.workers)
        controller.registrar.shard_epoch = before.shards["controller-1"]
        controller.registrar.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
        before = await worker.table(lambda table: table.models[0].current == "1")
        broker.stop()
        assert worker.registrar.table == before  # the service goes on with the table it has
        again = Broker(made, tmp_path, broker.number)
        for service in services:
            after = await service.table(lambda table: table.epoch > before.epoch and len(table.members) == 2)
            assert set(members(after)) == {"controller-1", "gpu_worker-1"}
            assert after.shards == before.shards  # a controller keeps the epoch of its shard
            assert after.workers == {"gpu_worker-1": "controller-1"}
            assert after.models == before.models
        for service in services:
            service.registrar.stop()
        again.stop()


@on_loop
async def test_nothing_can_be_sent_while_the_broker_is_known_to_be_gone(tmp_path: Path) -> None:
    async with mesh(tmp_path, **PATIENT) as (made, broker):
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        assert service.registrar.send(wire.GetTable(call=1)) is False
        service.registrar.start()
        await service.table()
        assert service.registrar.send(wire.Heartbeat()) is True
        turns = Told()
        service.runtime.hub.on_turn(turns)
        broker.stop()
        await turns.until(lambda _: service.registrar.send(wire.GetTable(call=1)) is False)
        service.registrar.stop()


@on_loop
async def test_a_table_that_is_not_newer_is_not_told_again(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        table = await service.table()
        service.registrar.send(wire.GetTable(call=1))
        service.registrar.send(wire.GetTable(call=2))
        await service.replies.count(2)
        assert service.tables.items == [table]
        service.registrar.stop()


@both_makes
@on_loop
async def test_the_outcome_of_a_call_comes_back_after_the_table_it_made(make: str, tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        service = Registered(process(made, broker, make), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        await service.table()
        service.registrar.send(wire.PutApp(call=9, definition={"name": "a", "models": ["m"]}, create=True))
        (reply,) = await service.replies.count(1)
        assert (reply.call, reply.ok, reply.revision) == (9, True, 1)
        assert [app.name for app in service.registrar.table.apps] == ["a"]  # type: ignore[union-attr]
        service.registrar.stop()


@on_loop
async def test_a_service_that_the_broker_lost_introduces_itself_again(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        first = await service.table()
        service.registrar.send(wire.Goodbye())  # which it does not mean: it goes on
        again = await service.table(lambda table: table.epoch > first.epoch)
        assert members(again) == ["frontend-1"]
        service.registrar.stop()


@on_loop
async def test_the_tables_of_a_broker_that_lost_its_data_are_taken(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        service = Registered(made.runtime(), broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        for number in range(3):  # several tables
            service.registrar.send(wire.PutApp(call=1, definition={"name": f"a{number}", "models": ["m"]}, create=True))
        before = await service.table(lambda table: len(table.apps) == 3)
        broker.stop()
        (tmp_path / "other").mkdir()
        package(tmp_path / "other" / "repository", "n", "1")
        other = Broker(made, tmp_path / "other", broker.number)
        table = await service.table(lambda table: table != before)
        assert [model.name for model in table.models] == ["n"]
        service.registrar.stop()
        other.stop()


@on_loop
async def test_a_worker_that_obeys_a_shard_newer_than_the_broker_knows_has_its_owner_get_a_newer_one(
    tmp_path: Path,
) -> None:
    async with mesh(tmp_path) as (made, broker):
        services = [
            Registered(made.runtime(), broker.addresses, f"{role}-1", role) for role in ("controller", "gpu_worker")
        ]
        for service in services:
            service.registrar.start()
        controller, worker = services
        before = await controller.table(lambda table: table.workers)
        obeyed = before.shards["controller-1"] + 10
        worker.registrar.obeyed(obeyed)
        worker.runtime.hub.schedule_turn()
        await controller.table(lambda table: table.shards["controller-1"] > obeyed)


@pytest.mark.parametrize("ending", [False, True])
@on_loop
async def test_a_broker_that_goes_is_a_warning_unless_the_process_is_ending(ending: bool, tmp_path: Path) -> None:
    async with mesh(tmp_path) as (made, broker):
        runtime = made.runtime()
        service = Registered(runtime, broker.addresses, "frontend-1", "frontend")
        service.registrar.start()
        await service.table()
        runtime.transport.ending = ending
        turns = Told()
        runtime.hub.on_turn(turns)
        with structlog.testing.capture_logs() as lines:
            broker.stop()
            await turns.until(lambda _: [line for line in lines if line["event"] == "broker_lost"])
        assert {line["log_level"] for line in lines if line["event"] == "broker_lost"} == {
            "info" if ending else "warning"
        }
        service.registrar.stop()
