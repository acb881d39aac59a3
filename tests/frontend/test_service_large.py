"""frontend/service.py: large inputs stay in the frontend, large outputs in the worker, until they are not needed."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from frontend.client.client import Failed, Prediction, TimedOut
from mesh import wire
from mesh.process.ids import host_id
from mesh.process.segments import SegmentReader, SegmentWriter
from tests.frontend.service_mesh import SPEC, Controller, Mesh, mesh
from tests.loops import on_loop
from tests.mesh.net.brokers import Caller

WIDTH = 20_000
WIDE = msgspec.structs.replace(
    SPEC,
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, WIDTH)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, WIDTH)),),
)
ROW_BYTES = 4 * WIDTH


def rows(count: int = 1, seed: int = 1) -> Any:
    return np.random.default_rng(seed).random((count, WIDTH), np.float32)


@pytest.fixture
def reader() -> Iterator[SegmentReader]:
    """Of a worker of this machine."""
    reader = SegmentReader()
    yield reader
    reader.close()


@pytest.fixture
def memory() -> Iterator[SegmentWriter]:
    """A worker's."""
    memory = SegmentWriter(32 << 20)
    yield memory
    memory.close()


@contextlib.asynccontextmanager
async def wide_mesh(folder: Path, host: str | None = None, **settings: Any) -> AsyncIterator[Mesh]:
    """A mesh with a model whose inputs and outputs are large, and a worker on this host, or that one."""
    async with mesh(folder, **settings) as at:
        at.controller.caller.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=WIDE))
        member = wire.Member(id="gpu_worker-1", role="gpu_worker", host=host_id() if host is None else host)
        worker = Caller(at.made.runtime(), at.broker.addresses, member.id)
        worker.link.send(wire.Register(member=member))
        await at.models(lambda models: models["m"]["inputs"][0]["shape"] == [-1, WIDTH])
        await at.status(lambda status: any(each["id"] == member.id for each in status["members"]))
        yield at


def in_slot(reader: SegmentReader, submit: wire.Submit) -> bytes | None:
    """What a worker of this machine finds of these inputs."""
    assert submit.kept is not None
    assert (submit.inline, submit.frames) == ((), 0)
    if submit.kept.slot is None:
        return None
    views = reader.read(submit.kept.slot, submit.kept.sizes)
    return None if views is None else b"".join(views)


def answer(submit: wire.Submit, y: bytes, kept: wire.Kept | None = None, request: int | None = None) -> wire.Answer:
    return wire.Answer(
        request=submit.request if request is None else request, attempt=submit.attempt, rows=submit.rows,
        predicted_s=0.25, inline=() if kept is not None else (memoryview(y),), kept=kept,
    )  # fmt: skip


def stored(memory: SegmentWriter, y: bytes) -> wire.Kept:
    slot = memory.put([y])
    assert slot is not None
    return wire.Kept(sizes=(len(y),), slot=slot)


def numbered(number: int, *answers: wire.Answer, again: bool = False) -> wire.Outputs:
    return wire.Outputs(
        ref="m:1", device="cpu:0", batch=1, exec_s=0.001, answers=answers, number=number, oldest=1, again=again
    )


def taken(mails: list[Any]) -> list[tuple[int, bool]]:
    """How far the frontend has said that it has taken outputs, and whether it reads slots."""
    return [
        (message.number, message.slots)
        for mail in mails
        for message in mail.messages
        if isinstance(message, wire.Taken)
    ]


def fetched(mails: list[Any]) -> list[tuple[int, int, list[bytes]]]:
    """(request, attempt, inputs) of each answer to Fetch."""
    found = []
    for mail in mails:
        frames = [bytes(frame) for frame in mail.frames]
        for message in mail.messages:
            if isinstance(message, wire.Fetched):
                found.append((message.request, message.attempt, frames[: message.frames]))
                del frames[: message.frames]
    return found


# -- inputs -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_workers_here_read_inputs_from_memory_until_the_request_is_answered(
    reader: SegmentReader, tmp_path: Path
) -> None:
    async with wide_mesh(tmp_path) as at:
        x = rows()
        future = at.client.submit("m", x)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert in_slot(reader, submit) == x.tobytes()
        assert (await at.status())["shared_bytes"] >= ROW_BYTES
        at.outputs(answer(submit, x.tobytes()))
        outcome: Any = await future
        assert np.array_equal(outcome["y"], x)
        assert in_slot(reader, submit) is None
        assert (await at.status())["shared_bytes"] == 0


@pytest.mark.parametrize("end", ["cancelled", "refused", "late", "client gone", "stopped"])
@on_loop
async def test_the_slot_is_freed_however_the_request_ends(end: str, reader: SegmentReader, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        future = at.client.submit("m", rows(), slo_ms=20.0 if end == "late" else 60_000)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert submit.kept is not None
        assert submit.kept.slot is not None
        if end == "cancelled":
            future.cancel()
        elif end == "refused":
            at.controller.send(
                wire.Refused(request=submit.request, attempt=0, status="rejected", code="would_be_late", message="no")
            )
            assert not isinstance(await future, Prediction)
        elif end == "late":
            assert isinstance(await future, TimedOut)
        elif end == "client gone":
            at.client.close()
        else:
            at.stop_frontend()
            assert isinstance(await future, Failed)
        await at.until(lambda: in_slot(reader, submit) is None)
        assert not reader.holds(submit.kept.slot)


@on_loop
async def test_a_worker_that_still_reads_a_slot_of_a_cancelled_request_finds_out(
    reader: SegmentReader, tmp_path: Path
) -> None:
    """Whatever it has read is half the one request and half the other: the worst moment."""
    async with wide_mesh(tmp_path, shared_mb=16) as at:
        x = rows(8)
        future = at.client.submit("m", x)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert submit.kept is not None
        assert submit.kept.slot is not None
        views = reader.read(submit.kept.slot, submit.kept.sizes)
        assert views is not None
        half = bytes(views[0][: 4 * ROW_BYTES])
        future.cancel()
        await at.controller.wait(wire.Cancel, 1)
        number = 1
        places: set[int] = set()
        while submit.kept.slot.offset not in places:
            number += 1
            other = at.client.submit("m", rows(8, seed=number))
            later = (await at.controller.wait(wire.Submit, number))[-1]
            places.add(later.kept.slot.offset)
            other.cancel()
            await at.controller.wait(wire.Cancel, number)
        assert half + bytes(views[0][4 * ROW_BYTES :]) != x.tobytes()
        assert not reader.holds(submit.kept.slot)


@pytest.mark.parametrize("host", [None, "elsewhere"])
@on_loop
async def test_workers_fetch_inputs_as_long_as_the_request_is_open(host: str | None, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path, host) as at:
        x, y = rows(1, 1), rows(2, 2)
        first, second = at.client.submit("m", x), at.client.submit("m", y)
        one, other = await at.controller.wait(wire.Submit, 2)
        assert (one.kept.slot is None) == (host is not None)
        at.ask(
            wire.Fetch(request=other.request, attempt=5),
            wire.Fetch(request=one.request, attempt=0),
            wire.Fetch(request=1 << 60, attempt=1),
            wire.Fetch(request=one.request, attempt=0),
        )
        mails = await at.told_worker.until(lambda mails: len(fetched(mails)) == 4)
        assert fetched(mails) == [
            (other.request, 5, [y.tobytes()]),
            (one.request, 0, [x.tobytes()]),
            (1 << 60, 1, []),
            (one.request, 0, [x.tobytes()]),
        ]
        at.outputs(answer(one, x.tobytes()), answer(other, y.tobytes()))
        assert [type(await future) for future in (first, second)] == [Prediction] * 2
        at.ask(wire.Fetch(request=one.request, attempt=0))
        mails = await at.told_worker.until(lambda mails: len(fetched(mails)) == 5)
        assert fetched(mails)[-1] == (one.request, 0, [])
        assert (await at.status())["inputs_fetched"] == 3


@on_loop
async def test_without_shared_memory_inputs_are_fetched(tmp_path: Path) -> None:
    async with wide_mesh(tmp_path, shared_mb=0) as at:
        at.client.submit("m", rows())
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert submit.kept is not None
        assert submit.kept.slot is None
        assert (await at.status())["inputs_crowded"] == 0, "no memory is shared, so there is none to be short of"


@on_loop
async def test_a_split_request_has_a_slot_for_each_part(reader: SegmentReader, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        x = rows(11)
        future = at.client.submit("m", x)
        first, second = await at.controller.wait(wire.Submit, 2)
        assert in_slot(reader, first) == x[:8].tobytes()
        assert in_slot(reader, second) == x[8:].tobytes()
        at.outputs(answer(first, x[:8].tobytes()))
        at.outputs(answer(second, x[8:].tobytes()))
        outcome: Any = await future
        assert np.array_equal(outcome["y"], x)
        assert (await at.status())["shared_bytes"] == 0


@on_loop
async def test_the_successor_of_a_controller_is_told_of_the_same_slot(reader: SegmentReader, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        x = rows()
        future = at.client.submit("m", x)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.controller.leave()
        successor = Controller(at.made, at.broker, "controller-2")
        (again,) = await successor.wait(wire.Submit, 1)
        assert again.kept == submit.kept
        assert again.attempt > submit.attempt
        assert in_slot(reader, again) == x.tobytes()
        at.outputs(answer(again, x.tobytes()))
        assert isinstance(await future, Prediction)


@on_loop
async def test_who_waits_for_the_same_inputs_goes_on_with_their_slot(reader: SegmentReader, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path, cache_mb=64) as at:
        x = rows()
        first = at.client.submit("m", x)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        second = at.client.submit("m", x, slo_ms=600_000)
        await at.status(lambda status: status["in_flight"] == 2)
        first.cancel()
        await at.status(lambda status: status["in_flight"] == 1)
        assert in_slot(reader, submit) == x.tobytes()
        at.outputs(answer(submit, x.tobytes()))
        assert isinstance(await second, Prediction)
        assert in_slot(reader, submit) is None


# -- outputs ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_outputs_are_read_from_the_workers_memory_before_they_are_confirmed(
    memory: SegmentWriter, tmp_path: Path
) -> None:
    async with wide_mesh(tmp_path) as at:
        x, y = rows(1, 1), rows(1, 2)
        futures = [at.client.submit("m", each) for each in (x, y)]
        one, other = await at.controller.wait(wire.Submit, 2)
        kept = stored(memory, x.tobytes())
        assert kept.slot is not None
        at.ask(numbered(1, answer(one, b"", kept), answer(other, y.tobytes())))
        await at.told_worker.until(lambda mails: (1, True) in taken(mails))
        memory.free(kept.slot)
        stored(memory, bytes(len(x.tobytes())))
        outcomes: list[Any] = [await future for future in futures]
        assert [np.array_equal(outcome["y"], each) for outcome, each in zip(outcomes, (x, y), strict=True)] == [
            True
        ] * 2


@on_loop
async def test_large_outputs_are_confirmed_soon(memory: SegmentWriter, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path, heartbeat_ms=10_000.0) as at:
        future = at.client.submit("m", rows())
        (submit,) = await at.controller.wait(wire.Submit, 1)
        kept = stored(memory, bytes(4 << 20))
        at.ask(numbered(1, answer(submit, b"", kept, request=1 << 60)))  # for nobody: not read
        await at.told_worker.until(lambda mails: (1, True) in taken(mails))
        assert not future.done()


NOWHERE = wire.Slot(segment="1.2.ab", offset=1 << 20, generation=1)


@on_loop
async def test_slots_that_cannot_be_read_here_are_sent_instead(memory: SegmentWriter, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        x, y = rows(1, 1), rows(1, 2)
        futures = [at.client.submit("m", each) for each in (x, y)]
        one, other = await at.controller.wait(wire.Submit, 2)
        far = wire.Kept(sizes=(ROW_BYTES,), slot=NOWHERE)
        at.ask(numbered(1, answer(one, b"", far)), numbered(2, answer(other, b"", far)))
        mails = await at.told_worker.until(lambda mails: (0, False) in taken(mails))
        at.ask(numbered(1, answer(one, x.tobytes()), again=True), numbered(2, answer(other, y.tobytes()), again=True))
        outcomes: list[Any] = [await future for future in futures]
        assert [np.array_equal(outcome["y"], each) for outcome, each in zip(outcomes, (x, y), strict=True)] == [
            True
        ] * 2
        mails = await at.told_worker.until(lambda mails: (2, False) in taken(mails))
        introduced = [m for mail in mails for m in mail.messages if isinstance(m, wire.Introduce)]
        assert introduced == []  # it was asked by the answer


@on_loop
async def test_frames_of_a_message_beside_one_that_cannot_be_read_are_its_own(tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        x = rows()
        future = at.client.submit("m", x)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        far = wire.Kept(sizes=(ROW_BYTES,), slot=NOWHERE)
        framed = msgspec.structs.replace(answer(submit, b""), inline=(), frames=1)
        unread = numbered(9, answer(submit, b"", far), msgspec.structs.replace(framed, request=1 << 60))
        at.ask(unread, frames=[bytes(8)])
        at.ask(msgspec.structs.replace(numbered(0), answers=(framed,)), frames=[x.tobytes()])
        outcome: Any = await future
        assert np.array_equal(outcome["y"], x)


@on_loop
async def test_outputs_that_the_worker_has_given_up_are_as_if_they_never_came(
    memory: SegmentWriter, tmp_path: Path
) -> None:
    async with wide_mesh(tmp_path) as at:
        x = rows()
        late, good = at.client.submit("m", x, slo_ms=100.0), at.client.submit("m", x, slo_ms=60_000)
        one, other = await at.controller.wait(wire.Submit, 2)
        kept = stored(memory, x.tobytes())
        assert kept.slot is not None
        memory.free(kept.slot)
        stored(memory, x.tobytes())
        at.ask(numbered(1, answer(one, b"", kept), answer(other, x.tobytes())))
        outcomes = [await late, await good]
        assert [type(outcome) for outcome in outcomes] == [TimedOut, Prediction]


@pytest.mark.parametrize("sizes", [(ROW_BYTES - 4,), (ROW_BYTES, 1), ()], ids=["too short", "too many", "none"])
@on_loop
async def test_outputs_in_a_slot_that_are_not_the_models_fail_that_request(
    sizes: tuple[int, ...], memory: SegmentWriter, tmp_path: Path
) -> None:
    async with wide_mesh(tmp_path) as at:
        future = at.client.submit("m", rows())
        (submit,) = await at.controller.wait(wire.Submit, 1)
        slot = memory.put([bytes(size) for size in sizes])
        at.ask(numbered(1, answer(submit, b"", wire.Kept(sizes=sizes, slot=slot))))
        outcome = await future
        assert isinstance(outcome, Failed)
        assert outcome.code == "bad_outputs"


@on_loop
async def test_made_up_slots_are_not_read(memory: SegmentWriter, tmp_path: Path) -> None:
    async with wide_mesh(tmp_path) as at:
        futures = [at.client.submit("m", rows(), slo_ms=100.0) for _ in range(3)]
        submits = await at.controller.wait(wire.Submit, 3)
        slot = memory.put([b"x" * ROW_BYTES])
        assert slot is not None
        wrong = [
            wire.Kept(sizes=(ROW_BYTES,), slot=msgspec.structs.replace(slot, offset=slot.offset + 64)),
            wire.Kept(sizes=(ROW_BYTES,), slot=msgspec.structs.replace(slot, offset=1 << 52)),
            wire.Kept(sizes=(1 << 50,), slot=slot),
        ]
        for number, (submit, kept) in enumerate(zip(submits, wrong, strict=True), 1):
            at.ask(numbered(number, answer(submit, b"", kept)))
        assert [type(await future) for future in futures] == [TimedOut] * 3
