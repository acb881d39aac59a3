"""gpu_worker/inputs.py: a real worker whose orders do not carry the inputs, and the frontend that keeps them."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpu_worker.core.jobs import Done, Job, Phase
from mesh import wire
from mesh.codes import ActionCode
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process.segments import SegmentReader, SegmentWriter
from mesh.roles import PortKind
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.test_service import REF, World, world
from tests.gpu_worker.worker_builders import infer, load
from tests.loops import Told, on_loop
from tests.mesh.net.processes import Processes

RESULTS: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToResults])
ROWS = [1, 2, 1]
INPUTS = [struct.pack(f"<{4 * rows}f", *(float(10 * i + n) for n in range(4 * rows))) for i, rows in enumerate(ROWS)]


class ElsewhereReader(SegmentReader):
    """A reader on another machine: it can open nobody's segment."""

    def read(self, slot: wire.Slot, sizes: Sequence[int]) -> list[memoryview] | None:
        """None."""
        return None


class Keeper:
    """A frontend that keeps the inputs of requests, and takes outputs."""

    def __init__(self, made: Processes, name: str = "frontend-1") -> None:
        self.name = name
        self.runtime = made.runtime()
        self.writer = SegmentWriter(1 << 25)
        self.inputs: dict[int, bytes] = dict(enumerate(INPUTS))  # {request: its input}, of those that are open
        self.answers = True  # whether it answers a Fetch
        self.asked, self.told = Told(), Told()
        self.number = 0
        self.through = 0  # number of the last outputs that were taken
        self.listen()

    def listen(self) -> None:
        """It listens, at a new address."""
        self.port: Port[wire.ToResults, wire.FromResults] = Port(
            self.runtime.transport, "results", RESULTS, self._received, Told(), kind=PortKind.RESULTS, me=self.name,
            met=self._confirm,
        )  # fmt: skip
        self.addresses = self.port.listen("127.0.0.1", 0, "GEARMESH_HOST")

    def close(self) -> None:
        """Its memory is gone, and its port."""
        self.port.close()
        self.writer.close()

    def _received(self, mail: Mail[Any]) -> None:
        for message in mail.messages:
            if isinstance(message, wire.Fetch):
                self.asked((message.request, message.attempt))
                if self.answers:
                    self.answer(mail.peer, message.request, message.attempt)
            elif isinstance(message, wire.Outputs) and message.number > self.through:
                self.through = message.number
                self._confirm(mail.peer)
                self.told(message)

    def _confirm(self, worker: str) -> None:
        self.port.send(worker, wire.Taken(number=self.through))

    def answer(self, worker: str, request: int, attempt: int = 0) -> None:
        """The inputs of the request are sent to this worker."""
        data = self.inputs.get(request)
        message = wire.Fetched(request=request, attempt=attempt, frames=0 if data is None else 1)
        self.port.send(worker, message, [] if data is None else [data])
        self.runtime.hub.schedule_turn()

    def order(self, number: int, how: str, **window: float) -> wire.Infer:
        """An INFER of all requests, whose inputs are where `how` says: "inline", "slot" or "fetch"."""
        action = infer(number, REF, batch=sum(ROWS), rows=ROWS, **window)  # type: ignore[arg-type]
        parts = []
        for part, data in zip(action.parts, INPUTS, strict=True):
            part = msgspec.structs.replace(part, frontend=self.name)
            if how == "inline":
                parts.append(msgspec.structs.replace(part, inline=(memoryview(data),)))
                continue
            slot = self.writer.put([data]) if how == "slot" else None
            parts.append(msgspec.structs.replace(part, kept=wire.Kept(sizes=(len(data),), slot=slot)))
        return msgspec.structs.replace(action, parts=tuple(parts))

    async def outputs(self, count: int) -> dict[int, bytes]:
        """{request: its output}, of as many messages as were not asked for before."""
        messages = (await self.told.count(self.number + count))[self.number : self.number + count]
        self.number += count
        return {answer.request: bytes(answer.inline[0]) for message in messages for answer in message.answers}


async def ready(at: World) -> Keeper:
    """The worker has the weights, and knows a frontend."""
    keeper = Keeper(at.made)
    at.tell(wire.Frontends(results={keeper.name: keeper.addresses}))
    at.tell(wire.Prepare(ref=REF))
    assert (await at.said(wire.Prepared)).ok
    at.tell(load(1, REF))
    assert (await at.said(wire.ActionResult)).code == ActionCode.OK
    return keeper


async def right(at: World, keeper: Keeper) -> dict[int, bytes]:
    """What the model gives for all inputs, which the order carries."""
    at.tell(keeper.order(2, "inline"))
    result = await at.said(wire.ActionResult)
    assert (result.code, result.fetched_bytes, result.missing) == (ActionCode.OK, 0, ())
    return await keeper.outputs(1)


@pytest.mark.parametrize("reader", [SegmentReader, ElsewhereReader])
@on_loop
async def test_outputs_are_equal_wherever_the_inputs_come_from(
    repository: Repository, tmp_path: Path, torch_as_it_was: None, reader: type[SegmentReader]
) -> None:
    async with world(repository, tmp_path, reader()) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        assert sorted(expected) == [0, 1, 2]
        total = sum(map(len, INPUTS))
        for number, (how, fetched) in enumerate(
            [("slot", total if reader is ElsewhereReader else 0), ("fetch", total), ("slot", None)], 3
        ):
            at.tell(keeper.order(number, how))
            result = await at.said(wire.ActionResult)
            assert (result.action, result.code, result.missing) == (number, ActionCode.OK, ())
            if fetched is not None:
                assert result.fetched_bytes == fetched
                assert (result.fetch_s is None) == (fetched == 0)
            assert await keeper.outputs(1) == expected
        keeper.close()


@on_loop
async def test_a_request_that_has_ended_is_left_out_and_the_others_get_their_own_rows(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        del keeper.inputs[1]
        at.tell(keeper.order(3, "fetch"))
        result = await at.said(wire.ActionResult)
        assert (result.code, result.missing, result.ended) == (ActionCode.OK, (), (1,))
        assert await keeper.outputs(1) == {request: expected[request] for request in (0, 2)}
        keeper.inputs.clear()
        at.tell(keeper.order(4, "fetch"))
        result = await at.said(wire.ActionResult)
        assert (result.code, result.missing, result.ended) == (ActionCode.INPUTS_MISSING, (), (0, 1, 2))
        keeper.close()


@on_loop
async def test_a_slot_that_was_freed_before_it_was_read_is_asked_for(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        order = keeper.order(3, "slot")
        kept = order.parts[1].kept
        assert kept is not None
        assert kept.slot is not None
        keeper.writer.free(kept.slot)
        at.tell(order)
        result = await at.said(wire.ActionResult)
        assert (result.code, result.fetched_bytes) == (ActionCode.OK, len(INPUTS[1]))
        assert keeper.asked.items == [(1, 0)]
        assert await keeper.outputs(1) == expected
        keeper.close()


class Overwriting:
    """A device during whose next INPUT a slot is used anew."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.spoil: Callable[[], None] | None = None
        self.batches: list[int] = []  # rows of each EXEC

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Begins the phase; the first time that it is INPUT, `spoil` is called in its midst."""
        if phase is Phase.EXEC:
            self.batches.append(job.action.batch)  # type: ignore[union-attr]
        spoil = self.spoil
        if phase is Phase.INPUT and spoil is not None:
            self.spoil = None
            spoil()
        done: Done | None = self._device.begin(phase, job)
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


@on_loop
async def test_a_slot_that_is_used_anew_while_it_is_read_costs_the_others_nothing(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    """Its call has ended, and other inputs are written into its place, at the worst moment."""
    devices: list[Overwriting] = []

    def wrap(device: Any) -> Overwriting:
        devices.append(Overwriting(device))
        return devices[0]

    async with world(repository, tmp_path, wrap=wrap) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        order = keeper.order(3, "slot")
        kept = order.parts[1].kept
        assert kept is not None
        assert kept.slot is not None
        slot = kept.slot

        def spoil() -> None:
            keeper.writer.free(slot)
            for _ in range(10_000):
                other = keeper.writer.put([b"\xff" * len(INPUTS[1])])
                if other is None or other.offset == slot.offset:
                    break

        (device,) = devices
        device.batches.clear()
        device.spoil = spoil
        at.tell(order)
        result = await at.said(wire.ActionResult)
        assert (result.code, result.missing) == (ActionCode.OK, (1,))
        assert await keeper.outputs(1) == {request: expected[request] for request in (0, 2)}
        assert device.batches == [2]
        keeper.close()


@on_loop
async def test_a_frontend_that_is_not_there_any_more_is_not_waited_for(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        order = keeper.order(3, "fetch")
        stranger = msgspec.structs.replace(order.parts[1], frontend="frontend-0")
        at.tell(msgspec.structs.replace(order, parts=(order.parts[0], stranger, order.parts[2])))
        result = await at.said(wire.ActionResult)
        assert (result.code, result.missing) == (ActionCode.OK, (1,))
        assert await keeper.outputs(1) == {request: expected[request] for request in (0, 2)}
        keeper.close()


@on_loop
async def test_what_does_not_come_in_time_is_left_out_and_what_comes_late_is_dropped(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        keeper = await ready(at)
        await right(at, keeper)
        keeper.answers = False
        now = asyncio.get_running_loop().time()
        at.tell(keeper.order(3, "fetch", earliest_s=now, latest_s=now + 0.2))
        await keeper.asked.count(3)
        keeper.answer(at.peer, 0)
        keeper.answer(at.peer, 2)
        result = await at.said(wire.ActionResult)
        assert result.missing[:1] == (1,) or result.missing == (0, 1, 2)  # a machine that stood still for 0.2 s
        keeper.answer(at.peer, 1)  # late
        keeper.answers = True
        at.tell(keeper.order(4, "fetch"))
        assert (await at.said(wire.ActionResult)).code == ActionCode.OK
        keeper.close()


@on_loop
async def test_on_the_link_that_replaces_a_lost_one_inputs_are_asked_for_again(
    repository: Repository, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path, heartbeat_ms=20.0, silence_ms_max=600.0) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        keeper.answers = False
        at.tell(keeper.order(3, "fetch"))
        await keeper.asked.count(3)
        keeper.answer(at.peer, 0)
        keeper.port.close()  # what was sent may have arrived, or not
        keeper.answers = True
        keeper.listen()
        at.tell(wire.Frontends(results={keeper.name: keeper.addresses}))
        result = await at.said(wire.ActionResult)
        assert (result.code, result.missing) == (ActionCode.OK, ())
        assert await keeper.outputs(1) == expected
        keeper.close()


@pytest.mark.parametrize("how", ["revoked", "stopped"])
@on_loop
async def test_nothing_is_awaited_any_more_once_nobody_wants_the_batch(
    repository: Repository, tmp_path: Path, torch_as_it_was: None, how: str
) -> None:
    async with world(repository, tmp_path) as at:
        keeper = await ready(at)
        expected = await right(at, keeper)
        keeper.answers = False
        at.tell(keeper.order(3, "fetch"))
        await keeper.asked.count(3)
        if how == "stopped":
            return  # while it waits
        at.tell(wire.Revoke(action=3))
        assert (await at.said(wire.ActionResult)).code == ActionCode.REVOKED
        for request in range(3):
            keeper.answer(at.peer, request)  # for nobody
        keeper.answers = True
        at.tell(keeper.order(4, "fetch"))
        result = await at.said(wire.ActionResult)
        assert (result.action, result.code) == (4, ActionCode.OK)
        assert await keeper.outputs(1) == expected
        keeper.close()
