"""controller/service.py: a real controller beside a real broker; the worker is the test."""

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from controller.service import ControllerService
from gpu_worker.service import CONTROLLER
from mesh import wire
from mesh.net.links import Link
from tests.controller.core.controller_builders import TEN_MS, hello, prepared, spec
from tests.loops import Told, on_loop
from tests.mesh.net.brokers import Broker, Caller, package
from tests.mesh.net.processes import messages_of, processes


@on_loop
async def test_a_worker_that_comes_before_the_broker_keeps_what_it_has_of_what_is_wanted(tmp_path: Path) -> None:
    async with processes() as made:
        package(tmp_path / "repository", "m", "1")
        broker = Broker(made, tmp_path)
        first = Caller(made.runtime(), broker.addresses, "controller-0")
        first.register("controller")
        first.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=spec(), content="A"))
        await first.table(lambda table: table.models and table.models[0].current == "1")
        broker.stop()
        runtime = made.runtime(data_dir=tmp_path / "data", controller_port=0, broker_port=broker.number)
        service = ControllerService(runtime)
        service.start()
        mail = Told()
        worker: Link[wire.FromControllerToWorker, wire.ToController] = Link(
            made.runtime().transport, "w1", service.member, CONTROLLER, mail, Told()
        )
        worker.call(service.addresses)
        has = msgspec.structs.replace(prepared("m:1", TEN_MS), content="A")
        worker.send(hello("w1", has, prepared("old:1", TEN_MS), resident=["m:1"]))
        worker.transport.hub.schedule_turn()
        await mail.until(lambda mails: mails)  # a heartbeat: it was heard
        again = Broker(made, tmp_path, broker.number)
        told = messages_of(await mail.until(lambda mails: _has(mails, wire.Forget)))
        assert [message.ref for message in told if isinstance(message, wire.Forget)] == ["old:1"]
        assert not any(isinstance(message, wire.Prepare) for message in told)
        assert list(service.scheduler.state.models["m:1"].ready) == ["w1"]
        worker.close()
        service.stop()
        again.stop()


@on_loop
async def test_a_worker_that_comes_before_the_broker_and_leaves_before_it_has_no_place(tmp_path: Path) -> None:
    """Its place would stay for good, as nobody watches a worker that has no link."""
    async with processes() as made:
        package(tmp_path / "repository", "m", "1")
        with_broker = Broker(made, tmp_path)
        with_broker.stop()
        runtime = made.runtime(data_dir=tmp_path / "data", controller_port=0, broker_port=with_broker.number)
        service = ControllerService(runtime)
        service.start()
        links = []
        for worker in ("w1", "w2"):
            mail = Told()
            link: Link[wire.FromControllerToWorker, wire.ToController] = Link(
                made.runtime().transport, worker, service.member, CONTROLLER, mail, Told()
            )
            link.call(service.addresses)
            link.send(hello(worker))
            link.send(wire.Heartbeat())
            if worker == "w1":
                link.send(wire.Goodbye())
                await mail.until(lambda mails: _has(mails, wire.Introduce))  # for a heartbeat after it
            links.append((link, mail))
        again = Broker(made, tmp_path, with_broker.number)
        await links[1][1].until(lambda mails: _has(mails, wire.Welcome))
        assert list(service.scheduler.state.devices) == ["w2"]
        for link, _ in links:
            link.close()
        service.stop()
        again.stop()


@pytest.mark.parametrize("leaves", [True, False])
@on_loop
async def test_a_loss_is_a_warning_unless_the_member_said_that_it_leaves(tmp_path: Path, leaves: bool) -> None:
    async with processes(heartbeat_ms=20.0) as made:
        broker = Broker(made, tmp_path)
        runtime = made.runtime(data_dir=tmp_path / "data", controller_port=0, broker_port=broker.number)
        service = ControllerService(runtime)
        turns = Told()
        runtime.hub.on_turn(turns)
        with structlog.testing.capture_logs() as lines:
            service.start()
            await turns.until(lambda _: _logged(lines, "shard"))
            mails = {name: Told() for name in ("w1", "frontend-1")}
            links: dict[str, Link[wire.FromControllerToWorker, wire.ToController]] = {
                name: Link(made.runtime().transport, name, service.member, CONTROLLER, mail, Told())
                for name, mail in mails.items()
            }
            links["w1"].call(service.addresses).send(hello("w1"))
            links["frontend-1"].call(service.addresses).send(
                wire.FrontendHello(member="frontend-1", host="h", results=("tcp://127.0.0.1:9",))
            )
            for link in links.values():
                link.transport.hub.schedule_turn()
            await turns.until(lambda _: _logged(lines, "worker_joined") and _logged(lines, "frontend_joined"))
            if leaves:
                for link in links.values():
                    link.send(wire.Goodbye())
                    link.transport.hub.schedule_turn()
                await mails["w1"].until(lambda mail: _has(mail, wire.Goodbye))
            for link in links.values():
                link.close(200)
            await turns.until(lambda _: _logged(lines, "worker_lost") and _logged(lines, "frontend_lost"))
            levels = {_logged(lines, event)[0]["log_level"] for event in ("worker_lost", "frontend_lost")}
            assert levels == {"info" if leaves else "warning"}
            service.stop()
            broker.stop()


def _logged(lines: Sequence[MutableMapping[str, Any]], event: str) -> list[MutableMapping[str, Any]]:
    return [line for line in lines if line["event"] == event]


def _has(mails: list[object], kind: type) -> bool:
    return any(isinstance(message, kind) for message in messages_of(mails))  # type: ignore[arg-type]
