"""frontend/admin/operator.py: an operator's blocking calls, against a real broker."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from frontend.admin.observer import NoMesh, Observer
from frontend.admin.operator import NoBroker, Operator
from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.process.ids import host_id
from mesh.process.settings import Settings
from tests.loops import LIMIT_S, on_loop
from tests.mesh.net.brokers import SPEC, Broker, Caller, package
from tests.mesh.net.processes import Processes, processes


@contextlib.asynccontextmanager
async def mesh(folder: Path) -> AsyncIterator[tuple[Settings, Caller, Processes]]:
    """The settings of a mesh whose repository has model m, and its controller."""
    package(folder / "repository", "m", "1")
    async with processes(heartbeat_ms=20.0, silence_ms_max=60_000.0) as made:
        broker = Broker(made, folder)
        try:
            controller = Caller(made.runtime(), broker.addresses, "controller-1")
            controller.register("controller")
            await controller.table()
            yield Settings(broker_port=broker.number, data_dir=made.keys.folder), controller, made
        finally:
            broker.stop()


@on_loop
async def test_an_operator_sees_the_table(tmp_path: Path) -> None:
    def look(settings: Settings) -> wire.Table:
        with Operator(settings) as operator:
            return operator.table()

    async with mesh(tmp_path) as (settings, _, _):
        table = await asyncio.to_thread(look, settings)
        assert [member.id for member in table.members] == ["controller-1"]
        assert [model.name for model in table.models] == ["m"]


@on_loop
async def test_an_operator_waits_for_the_outcome_and_is_told_that_it_still_waits(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    waits = asyncio.Event()

    def deploy(settings: Settings) -> wire.CallReply:
        with Operator(settings) as operator:
            message = wire.Deploy(call=7, name="m", version="1")
            return operator.call(message, LIMIT_S, lambda: loop.call_soon_threadsafe(waits.set) and None)

    async with mesh(tmp_path) as (settings, controller, _):
        call = asyncio.ensure_future(asyncio.to_thread(deploy, settings))
        await waits.wait()
        assert not call.done()
        await controller.mail.until(lambda _: controller.tables()[-1].models[0].target == "1")
        # the call has arrived: the broker knows the operator
        controller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
        reply = await call
        assert (reply.call, reply.ok) == (7, True)


@on_loop
async def test_an_outcome_that_does_not_come_in_time_is_said_so(tmp_path: Path) -> None:
    def deploy(settings: Settings) -> None:
        with Operator(settings) as operator, pytest.raises(TimeoutError):
            operator.call(wire.Deploy(call=1, name="m", version="1"), 0.05)

    async with mesh(tmp_path) as (settings, _, _):
        await asyncio.to_thread(deploy, settings)


@on_loop
async def test_a_call_that_cannot_be_obeyed_is_answered_with_the_reason(tmp_path: Path) -> None:
    def undeploy(settings: Settings) -> wire.CallReply:
        with Operator(settings) as operator:
            return operator.call(wire.Undeploy(call=1, name="x"), LIMIT_S)

    async with mesh(tmp_path) as (settings, _, _):
        reply = await asyncio.to_thread(undeploy, settings)
        assert (reply.ok, reply.field) == (False, "name")
        assert all(name in reply.message for name in ("'x'", "m"))


@pytest.mark.parametrize(
    ("message", "again"),
    [
        (wire.Deploy(call=1, name="m", version="2"), True),
        (wire.Rollback(call=1, name="m", version="1"), True),
        (wire.Rollback(call=1, name="m"), False),  # if done already, it would go one version further back
    ],
)
@on_loop
async def test_a_broker_that_is_started_again_is_asked_again(
    tmp_path: Path, message: wire.Deploy | wire.Rollback, again: bool
) -> None:
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()

    def ask(settings: Settings) -> wire.CallReply:
        with Operator(settings) as operator:
            return operator.call(message, LIMIT_S, lambda: loop.call_soon_threadsafe(heard.set) and None)

    async with processes(heartbeat_ms=20.0) as made:
        elsewhere, before = await with_history(made, tmp_path / "2", isinstance(message, wire.Rollback))
        before.link.close()
        elsewhere.stop()  # it had a port of its own, so that whoever calls the first one has not heard of it
        first, controller = await with_history(made, tmp_path / "1", isinstance(message, wire.Rollback))
        settings = Settings(broker_port=first.number, data_dir=made.keys.folder)
        call = asyncio.ensure_future(asyncio.to_thread(ask, settings))
        await heard.wait()
        if isinstance(message, wire.Rollback):
            await controller.table(lambda table: table.models[0].target == "1")
        else:
            await controller.table(lambda table: table.models[0].tries == 2)
        controller.link.close()
        first.stop()
        second = Broker(made, tmp_path / "2", first.number)  # it does not know the calls of the first
        controller = Caller(made.runtime(), second.addresses, "controller-1")
        controller.register("controller")
        if not again:
            with pytest.raises(NoBroker):
                await call
            assert (await controller.table()).models[0].target is None
        else:
            wanted = message.version
            if isinstance(message, wire.Rollback):
                await controller.table(lambda table: table.models[0].target == wanted)
            else:
                await controller.table(lambda table: table.models[0].tries == 2)
            controller.link.send(wire.PrepareReport(ref=f"m:{wanted}", ok=True, spec=SPEC))
            assert (await call).ok
        second.stop()


async def with_history(made: Processes, folder: Path, deployed: bool) -> tuple[Broker, Caller]:
    """Returns a broker, and its controller: m:1 is current there and m:2 its target, or current after it."""
    package(folder / "repository", "m", "1")
    broker = Broker(made, folder)
    controller = Caller(made.runtime(), broker.addresses, "controller-1")
    controller.register("controller")
    controller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
    await controller.table(lambda table: table.models and table.models[0].current == "1")
    package(folder / "repository", "m", "2")
    operator = Caller(made.runtime(), broker.addresses, "operator-1")
    operator.link.send(wire.Deploy(call=9, name="m", version="2"))
    await controller.table(lambda table: table.models[0].target == "2")
    if deployed:
        controller.link.send(wire.PrepareReport(ref="m:2", ok=True, spec=SPEC))
        await controller.table(lambda table: table.models[0].current == "2")
    operator.link.close()
    return broker, controller


@on_loop
async def test_a_broker_that_is_gone_at_the_end_of_the_wait_is_not_said_to_be_at_it(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    waits = asyncio.Event()

    def deploy(settings: Settings) -> None:
        with Operator(settings) as operator, pytest.raises(NoBroker):
            operator.call(
                wire.Deploy(call=1, name="m", version="1"), 1.0, lambda: loop.call_soon_threadsafe(waits.set) and None
            )

    async with processes(heartbeat_ms=20.0) as made:
        package(tmp_path / "repository", "m", "1")
        broker = Broker(made, tmp_path)
        settings = Settings(
            broker_port=broker.number, data_dir=made.keys.folder, heartbeat_ms=20.0, silence_ms_max=100.0
        )
        call = asyncio.ensure_future(asyncio.to_thread(deploy, settings))
        await waits.wait()
        broker.stop()
        await call


@on_loop
async def test_an_operator_learns_where_packages_lie_and_all_that_was_ever_served(tmp_path: Path) -> None:
    def look(settings: Settings) -> wire.CatalogueReply:
        with Operator(settings) as operator:
            return operator.catalogue()

    async with mesh(tmp_path) as (settings, controller, _):
        for version, content in (("1", "aa"), ("2", "bb")):
            package(tmp_path / "repository", "m", version)
            controller.link.send(wire.Deploy(call=int(version), name="m", version=version))
            controller.link.send(wire.PrepareReport(ref=f"m:{version}", ok=True, spec=SPEC, content=content))
        await controller.table(lambda table: table.models[0].current == "2")
        found = await asyncio.to_thread(look, settings)
        repository = (tmp_path / "repository").resolve()
        assert (found.repository, found.inode) == (str(repository), repository.stat().st_ino)
        assert (found.host, found.machine) == (host_id(), socket.gethostname())
        contents = {"1": "aa", "2": "bb"}
        assert found.models == (wire.KnownModel(name="m", current="2", previous="1", contents=contents),)


@on_loop
async def test_a_deployment_that_waits_says_for_what_and_a_time_out_too(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (settings, _, made):
        loop = asyncio.get_running_loop()
        heard: list[wire.CallWaits] = []
        news = asyncio.Event()

        def told(waits: wire.CallWaits) -> None:
            heard.append(waits)
            loop.call_soon_threadsafe(news.set)

        def deploy() -> str:
            with Operator(settings) as operator, pytest.raises(TimeoutError) as late:
                operator.call(wire.Deploy(call=7, name="m", version="1"), 3.0, told=told)
            return str(late.value)

        call = asyncio.ensure_future(asyncio.to_thread(deploy))
        await news.wait()
        assert (heard[0].call, heard[0].reason) == (7, "no_worker")
        Caller(made.runtime(), (settings.broker_address,), "gpu_worker-1").register("gpu_worker")
        assert "m:1" in await call
        assert heard[-1].reason == "preparing"


def test_who_finds_nobody_and_has_no_keys_is_told_what_is_missing_once(tmp_path: Path) -> None:
    settings = Settings(broker_port=free_ports(1)[0], frontend_port=free_ports(1)[0], data_dir=tmp_path)
    with Observer(settings) as observer, pytest.raises(NoMesh) as raised:
        observer.look()
    told = str(raised.value)
    assert f"no frontend answers at {settings.frontend_address}" in told
    assert f"{tmp_path} has no mesh.key_secret" in told
    assert "no broker" not in told
