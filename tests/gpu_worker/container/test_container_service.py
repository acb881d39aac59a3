"""gpu_worker/container/service.py: containers ask a real broker which version they are."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.container.service import CANNOT, ContainerService
from gpu_worker.container.specs import ContainerOptions
from mesh import wire
from mesh.codes import PackageCode
from mesh.process.readiness import ReadyPipe, ReadySignal
from tests.gpu_worker.container.container_builders import X, Y
from tests.loops import LIMIT_S, Told, on_loop
from tests.mesh.net.brokers import Broker, Caller
from tests.mesh.net.processes import Processes, processes


class Container:
    """One container in this process, and how it ended, if it did."""

    def __init__(
        self, made: Processes, folder: Path, module: str, number: int, ready: ReadySignal, **options: Any
    ) -> None:
        told = ContainerOptions(
            model="f", predict=f"{module}:f", python=sys.executable, inputs=(X,), outputs=(Y,), **options
        )
        self.runtime = made.runtime(data_dir=folder / "data", broker_port=number)
        self.service = ContainerService(self.runtime, told, ready, start_s=LIMIT_S)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.runtime.end = self.ended.set_result  # type: ignore[method-assign]
        self.service.start()

    async def version(self) -> str:
        """Returns its version, or how it ended."""
        while self.known is None and not self.ended.done():  # noqa: ASYNC110  # until the broker answers
            await asyncio.sleep(0.001)
        return self.known or f"ended with {await self.ended}"

    @property
    def known(self) -> str | None:
        """Its version, if it has one by now."""
        return self.service.device.options.version if self.service.device is not None else None


class World:
    """A broker, and an observer of its table."""

    def __init__(self, made: Processes, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.broker = Broker(made, folder)
        self.number = self.broker.number
        self.started: list[Container] = []

    def container(self, module: str, ready: ReadySignal | None = None, **options: Any) -> Container:
        ready = ready or ReadySignal(None)
        self.started.append(Container(self.made, self.folder, module, self.number, ready, **options))
        return self.started[-1]

    def again(self) -> None:
        """The broker is started again."""
        self.broker.stop()
        self.broker = Broker(self.made, self.folder, self.number)

    async def offered(self, count: int) -> list[str]:
        """Returns what the registered containers serve, once there are `count` of them."""
        caller = Caller(self.made.runtime(), self.broker.addresses, "frontend-1")
        caller.register("frontend")
        table = await caller.table(lambda table: len(_offers(table)) == count)
        caller.link.close()
        return _offers(table)


def _offers(table: wire.Table) -> list[str]:
    return sorted(member.offer.ref for member in table.members if member.offer is not None)


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with processes(heartbeat_ms=20.0, silence_ms_max=60_000.0) as made:
        begun = World(made, folder)
        try:
            yield begun
        finally:
            for container in begun.started:
                container.service.stop()
            begun.broker.stop()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two modules with different code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "double.py").write_text("def f(x):\n    return x * 2\n")
    (tmp_path / "triple.py").write_text("def f(x):\n    return x * 3\n")
    return tmp_path


@on_loop
async def test_replicas_of_one_code_are_one_version_and_other_code_at_the_same_time_is_another(folder: Path) -> None:
    async with world(folder) as at:
        started = [at.container("double"), at.container("triple"), at.container("double")]
        versions = [await container.version() for container in started]
        assert versions[0] == versions[2]
        assert set(versions) == {"1", "2"}
        assert await at.offered(3) == sorted(f"f:{version}" for version in versions)


@on_loop
async def test_code_comes_back_under_its_own_number_though_the_broker_was_started_again(folder: Path) -> None:
    async with world(folder) as at:
        first = at.container("double")
        assert await first.version() == "1"
        first.service.stop()
        at.started.remove(first)
        at.again()
        assert await at.container("triple").version() == "2"
        assert await at.container("double").version() == "1"
        assert await at.offered(2) == ["f:1", "f:2"]


@on_loop
async def test_a_number_that_other_code_has_is_refused_with_a_code_and_ends_the_container(folder: Path) -> None:
    async with world(folder) as at:
        assert await at.container("double", version="4").version() == "4"
        await at.offered(1)
        other = at.container("triple", version="4")
        assert await other.ended == CANNOT
        assert PackageCode.VERSION_EXISTS in other.service.why
        assert await at.container("triple").version() == "5"
        assert await at.offered(2) == ["f:4", "f:5"]


@on_loop
async def test_a_container_that_is_there_before_the_broker_waits_for_it(folder: Path) -> None:
    async with world(folder) as at:
        at.broker.stop()
        started = at.container("double")
        assert started.known is None
        at.broker = Broker(at.made, at.folder, at.number)
        assert await started.version() == "1"
        assert await at.offered(1) == ["f:1"]


@on_loop
async def test_a_container_that_serves_registers_again_with_a_broker_that_was_started_again(folder: Path) -> None:
    async with world(folder) as at:
        started = at.container("double")
        await at.offered(1)
        at.again()
        assert await at.offered(1) == ["f:1"]
        assert not started.ended.done()


@on_loop
async def test_a_container_reports_that_it_serves_once_a_controller_has_welcomed_it(folder: Path) -> None:
    told = Told()
    pipe = ReadyPipe(asyncio.get_running_loop(), told).open()
    async with world(folder) as at:
        control = at.made.port(at.made.runtime())
        control.port.epoch = 1
        controller = Caller(at.made.runtime(), at.broker.addresses, "controller-1")
        endpoints = {"control": control.addresses}
        member = wire.Member(id="controller-1", role="controller", host="here", endpoints=endpoints)
        controller.link.send(wire.Register(member=member, epoch=1))
        at.container("double", ReadySignal(os.dup(pipe.descriptors[0])))
        (hello,) = await control.messages(1)
        assert told.items == []
        control.port.send(hello.member, wire.Welcome(controller="controller-1"))
        control.port.transport.hub.schedule_turn()
        await told.count(1)
    pipe.close()


@on_loop
async def test_a_container_is_a_member_from_its_start_and_a_worker_once_it_has_its_number(folder: Path) -> None:
    (folder / "waits.py").write_text(
        "import os, time\nprint('reading', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
        "def f(x): return x\n"
    )
    async with world(folder) as at:
        frontend = Caller(at.made.runtime(), at.broker.addresses, "frontend-1")
        frontend.register("frontend")
        at.container("waits")
        table = await frontend.table(lambda table: any(m.child and m.child.line == "reading" for m in table.members))
        (member,) = [member for member in table.members if member.child is not None]
        assert (member.role, member.offer) == ("container", None)
        assert member.child is not None
        assert (member.child.model, member.child.serves) == ("f", False)
        assert table.models == ()
        at.again()  # a broker that is started again hears of it, too
        frontend.link.close()
        frontend = Caller(at.made.runtime(), at.broker.addresses, "frontend-2")
        frontend.register("frontend")
        await frontend.table(lambda table: any(m.child and m.child.line == "reading" for m in table.members))
        (folder / "go").touch()
        table = await frontend.table(lambda table: [m.role for m in table.members if m.child] == ["gpu_worker"])
        assert _offers(table) == ["f:1"]
        frontend.link.close()


@pytest.mark.parametrize(
    ("module", "reason"),
    [("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"), ("f = 7", "wrong:f is of type int")],
)
@on_loop
async def test_code_that_cannot_be_served_ends_the_container_with_the_reason(
    module: str, reason: str, folder: Path
) -> None:
    (folder / "wrong.py").write_text(module)
    async with world(folder) as at:
        started = at.container("wrong")
        assert await started.ended == CANNOT
        assert reason in started.service.why
