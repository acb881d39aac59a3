"""broker/operator.py: an operator's blocking calls, against a real broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import wire
from broker.config import Settings
from broker.operator import Operator
from tests.broker.brokers import SPEC, Broker, Caller, package
from tests.broker.processes import processes
from tests.loops import LIMIT_S, on_loop


@contextlib.asynccontextmanager
async def mesh(folder: Path) -> AsyncIterator[tuple[Settings, Caller]]:
    """The settings of a mesh whose repository holds model m, and its controller."""
    package(folder / "repository", "m", "1")
    async with processes(heartbeat_ms=20.0, silence_ms_max=60_000.0) as made:
        broker = Broker(made, folder)
        try:
            controller = Caller(made.runtime(), broker.addresses, "controller-1")
            controller.register("controller")
            await controller.table()
            yield Settings(broker_port=broker.number), controller
        finally:
            broker.stop()


@on_loop
async def test_an_operator_sees_the_table(tmp_path: Path) -> None:
    def look(settings: Settings) -> wire.Table:
        with Operator(settings) as operator:
            return operator.table()

    async with mesh(tmp_path) as (settings, _):
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

    async with mesh(tmp_path) as (settings, controller):
        call = asyncio.ensure_future(asyncio.to_thread(deploy, settings))
        await waits.wait()
        assert not call.done()
        await controller.mail.until(lambda _: controller.tables()[-1].models[0].target == "1")
        # the call has come: the broker knows the operator
        controller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
        reply = await call
        assert (reply.call, reply.ok) == (7, True)


@on_loop
async def test_an_outcome_that_does_not_come_in_time_is_said_so(tmp_path: Path) -> None:
    def deploy(settings: Settings) -> None:
        with Operator(settings) as operator, pytest.raises(TimeoutError):
            operator.call(wire.Deploy(call=1, name="m", version="1"), 0.05)

    async with mesh(tmp_path) as (settings, _):
        await asyncio.to_thread(deploy, settings)


@on_loop
async def test_a_call_that_cannot_be_obeyed_is_answered_with_the_reason(tmp_path: Path) -> None:
    def undeploy(settings: Settings) -> wire.CallReply:
        with Operator(settings) as operator:
            return operator.call(wire.Undeploy(call=1, name="x"), LIMIT_S)

    async with mesh(tmp_path) as (settings, _):
        reply = await asyncio.to_thread(undeploy, settings)
        assert (reply.ok, reply.field) == (False, "name")
        assert all(name in reply.message for name in ("'x'", "m"))
