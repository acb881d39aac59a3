"""gpu_worker/service.py: a real worker between a real broker and a controller's port."""

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from gpu_worker.devices import cpu
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.package import Package, read_package
from gpu_worker.preparation import RepositoryVersions
from gpu_worker.service import WorkerService
from mesh import wire
from mesh.codes import ActionCode, ActionKind, PackageCode
from mesh.process.segments import SegmentReader
from tests.disks import refuse
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.test_preparing import other_weights
from tests.gpu_worker.worker_builders import infer, load
from tests.loops import on_loop
from tests.mesh.net.brokers import Broker, Caller
from tests.mesh.net.processes import Processes, messages_of, processes
from tests.messages import names

REF = "linear:1"


class Gated:
    """A device whose preparations wait, while the gate is shut."""

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version is prepared, once the gate is open."""
        self.begun.release()
        self.gate.wait()
        return self._device.prepare(package)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class World:
    """One worker, and what it says to its controller."""

    def __init__(
        self,
        made: Processes,
        repository: Repository,
        folder: Path,
        reader: SegmentReader | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> None:
        self.made = made
        self.folder = folder / "models"
        shutil.copytree(repository.folder / "linear", self.folder / "linear")
        self.broker = Broker(made, folder / "broker")
        self.control = made.port(made.runtime())
        self.control.port.epoch = 1
        self.controller = Caller(made.runtime(), self.broker.addresses, "controller-1")
        self.controller_member = wire.Member(
            id="controller-1", role="controller", host="here", endpoints={"control": self.control.addresses}
        )
        self.controller.link.send(wire.Register(member=self.controller_member, epoch=1))
        runtime = made.runtime(
            broker_port=self.broker.number, model_repository=self.folder, data_dir=folder / "data", device="cpu",
            arena_mb=8, page_mb=1,
        )  # fmt: skip
        self.device = Gated(CpuDevice(runtime.settings))
        device: Any = self.device if wrap is None else wrap(self.device)
        versions = RepositoryVersions(runtime.hub.loop, device, self.folder, ())
        self.worker = WorkerService(runtime, device, versions, reader=reader)
        self.peer = ""
        self._seen = 0

    async def begin(self) -> wire.WorkerHello:
        self.worker.start()
        hello: wire.WorkerHello = await self.said(wire.WorkerHello)
        self.peer = hello.member
        self.tell(wire.Welcome(controller="controller-1"))
        return hello

    def tell(self, message: Any) -> None:
        self.control.port.send(self.peer, message)
        self.control.port.transport.hub.schedule_turn()

    async def said(self, kind: type) -> Any:
        """The next message of the kind that the worker has sent."""

        def found(mails: Any) -> list[Any]:
            return [message for message in messages_of(mails)[self._seen :] if isinstance(message, kind)]

        mails = await self.control.mail.until(found)
        first = found(mails)[0]
        self._seen = next(i for i, message in enumerate(messages_of(mails)) if message is first) + 1
        return first

    def content(self) -> str:
        return ContentDigests().of(read_package(self.folder, REF, ()))


@contextlib.asynccontextmanager
async def world(
    repository: Repository,
    folder: Path,
    reader: SegmentReader | None = None,
    wrap: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """`reader`: of shared memory. `wrap`: makes the worker's device of the one that there is."""
    async with processes(**settings) as made:
        begun = World(made, repository, folder, reader, wrap)
        try:
            await begun.begin()
            yield begun
        finally:
            begun.device.gate.set()
            begun.worker.stop()
            begun.broker.stop()


@on_loop
async def test_what_is_prepared_is_told_with_its_content_and_again_in_the_next_hello(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        at.tell(wire.Prepare(ref=REF))
        report = await at.said(wire.Prepared)
        assert (report.ok, report.content) == (True, at.content())
        at.tell(wire.Introduce())
        hello = await at.said(wire.WorkerHello)
        assert [told.content for told in hello.prepared] == [at.content()]


@on_loop
async def test_files_that_are_not_those_that_were_asked_for_are_refused_with_a_code(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        at.tell(wire.Prepare(ref=REF, content="another"))
        report = await at.said(wire.Prepared)
        assert (report.ok, report.code, report.content) == (False, PackageCode.CONTENT_CHANGED, "")
        assert report.faults
        at.tell(wire.Prepare(ref=REF, content=at.content()))
        assert (await at.said(wire.Prepared)).ok


@on_loop
async def test_what_is_prepared_with_another_content_than_is_asked_for_is_read_anew(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        at.tell(wire.Prepare(ref=REF))
        first = await at.said(wire.Prepared)
        other_weights(at.folder)
        at.tell(wire.Prepare(ref=REF, content=first.content))
        assert (await at.said(wire.Prepared)).content == first.content  # from memory
        at.tell(wire.Prepare(ref=REF, content=at.content()))
        assert (await at.said(wire.Prepared)).content == at.content() != first.content
        at.tell(wire.Prepare(ref=REF, content=first.content))
        assert (await at.said(wire.Prepared)).code == PackageCode.CONTENT_CHANGED


@on_loop
async def test_a_version_whose_file_on_disk_is_another_s_is_given_up_with_its_reason_and_may_be_prepared_again(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "host_budget", lambda setting_mb: 0)  # weights stay on disk
    async with world(repository, tmp_path) as on:
        content = on.content()
        on.tell(wire.Prepare(ref=REF, content=content))
        assert (await on.said(wire.Prepared)).ok
        file = on.folder / "linear" / "1" / "weights.safetensors"
        good = file.read_bytes()
        file.write_bytes(good)
        on.tell(load(1, REF))
        assert (await on.said(wire.ActionResult)).code == ActionCode.OK  # the same bytes: it goes on
        on.tell(wire.Unload(action=2, ref=REF))
        file.write_bytes((file.parent.parent / "2" / file.name).read_bytes())
        on.tell(load(3, REF))
        unloaded, failed = [await on.said(wire.ActionResult) for _ in range(2)]
        assert (unloaded.code, failed.code) == (ActionCode.OK, ActionCode.CONTENT_CHANGED)
        told = await on.said(wire.Prepared)
        assert (told.ref, told.ok, told.code) == (REF, False, PackageCode.CONTENT_CHANGED)
        assert told.faults
        on.tell(wire.Prepare(ref=REF, content=content))
        assert (await on.said(wire.Prepared)).code == PackageCode.CONTENT_CHANGED
        file.write_bytes(good)
        on.tell(wire.Prepare(ref=REF, content=content))
        assert (await on.said(wire.Prepared)).ok


@on_loop
async def test_a_preparation_that_was_forgotten_does_not_answer_for_the_next_one(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        at.device.gate.clear()
        at.tell(wire.Prepare(ref=REF))
        await asyncio.get_running_loop().run_in_executor(None, at.device.begun.acquire)
        at.tell(wire.Forget(ref=REF))
        at.tell(wire.Prepare(ref=REF, content="another"))
        at.tell(wire.Prepare(ref="linear:2"))
        at.tell(wire.Introduce())
        await at.said(wire.WorkerHello)  # it has heard all of it
        at.device.gate.set()
        reports = [await at.said(wire.Prepared) for _ in range(2)]
        assert [(report.ref, report.ok) for report in reports] == [(REF, False), ("linear:2", True)]


@on_loop
async def test_an_infer_that_has_not_begun_is_taken_back_and_the_worker_says_so(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        at.tell(wire.Prepare(ref=REF))
        assert (await at.said(wire.Prepared)).ok
        at.tell(wire.Load(action=1, ref=REF, earliest_s=0.0, latest_s=1e12, expected_s=0.01))
        assert (await at.said(wire.ActionResult)).code == ActionCode.OK
        at.tell(wire.Infer(action=2, ref=REF, earliest_s=1e11, latest_s=1e12, expected_s=0.01, batch=1))
        at.tell(wire.Revoke(action=2))
        at.tell(wire.Revoke(action=2))
        result = await at.said(wire.ActionResult)
        assert (result.action, result.kind, result.code) == (2, ActionKind.INFER, ActionCode.REVOKED)


@on_loop
async def test_times_that_cannot_be_kept_are_used_all_the_same_and_that_is_said_once(
    repository: Repository, tmp_path: Path, torch_as_it_was: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(repository, tmp_path) as at:
        refuse(monkeypatch, at.folder, "open", errno.ENOSPC)
        numbers = itertools.count(1)
        with structlog.testing.capture_logs() as lines:
            for ref in (REF, "linear:2"):
                at.tell(wire.Prepare(ref=ref))
                report = await at.said(wire.Prepared)
                at.tell(load(next(numbers), ref))
                assert (await at.said(wire.ActionResult)).code == ActionCode.OK
                while report.profile is None:
                    for batch, runs, _ in report.measure:
                        for _ in range(runs):
                            at.tell(infer(next(numbers), ref, batch=batch, rows=[]))
                            assert (await at.said(wire.ActionResult)).code == ActionCode.OK
                    report = await at.said(wire.Prepared)
        (line,) = [line for line in lines if line["event"] == "profile_not_kept"]
        assert names(line["error"], at.folder, os.strerror(errno.ENOSPC), "GEARMESH_MODEL_REPOSITORY")


@on_loop
async def test_a_worker_obeys_the_controller_that_is_left_though_it_has_obeyed_a_newer_one(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    """Two controllers; the newer one, which has the worker, leaves."""
    async with world(repository, tmp_path) as at:
        older = await at.controller.table(lambda table: table.workers)
        newer = Caller(at.made.runtime(), at.broker.addresses, "controller-2")
        port = at.made.port(at.made.runtime())
        endpoints = {"control": port.addresses}
        member = wire.Member(id="controller-2", role="controller", host="here", endpoints=endpoints)
        newer.link.send(wire.Register(member=member))
        table = await newer.table(lambda table: "controller-2" in table.shards)
        assert table.shards["controller-2"] > older.shards["controller-1"]
        at.controller.link.send(wire.Goodbye())  # the worker goes to the newer one
        (hello,) = await port.messages(1)
        port.port.epoch = table.shards["controller-2"]
        port.port.send(hello.member, wire.Welcome(controller="controller-2"))
        port.port.transport.hub.schedule_turn()
        first = at.controller_member
        at.controller.link.send(wire.Register(member=first, epoch=1))
        await newer.table(lambda table: "controller-1" in table.shards)
        newer.link.send(wire.Goodbye())
        table = await at.controller.table(
            lambda table: table.workers == {hello.member: "controller-1"} and "controller-2" not in table.shards
        )
        assert table.shards["controller-1"] > port.port.epoch
        at.control.port.epoch = table.shards["controller-1"]
        await at.said(wire.WorkerHello)
        at.tell(wire.Welcome(controller="controller-1"))
        at.tell(wire.Prepare(ref=REF))
        assert (await at.said(wire.Prepared)).ok
        at.tell(load(1, REF))
        assert (await at.said(wire.ActionResult)).code == ActionCode.OK
