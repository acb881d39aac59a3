"""gpu_worker/answering.py and frontend/results.py: each answer reaches its frontend once, whatever becomes of links."""

import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from frontend.core.answer_forms import AnswerForm
from frontend.core.open_calls import Call, Completed
from frontend.core.requests import RequestTable
from frontend.results import ResultsPort
from gpu_worker.answering import DECODER as FROM_RESULTS
from gpu_worker.answering import OutputLinks
from gpu_worker.core.fetching import ON_WAY_BYTES
from gpu_worker.core.incoming import Incoming
from gpu_worker.core.jobs import Done, Job
from gpu_worker.core.unacknowledged import BYTES_MAX
from gpu_worker.inputs import KeptInputs
from mesh import wire
from mesh.net.keys import Keys
from mesh.net.links import Link
from mesh.process.ids import host_id
from mesh.process.segments import SegmentReader, SegmentWriter
from mesh.roles import PortKind
from tests.black_holes import swallow_port
from tests.loops import Told, on_loop
from tests.mesh.net.processes import Processes, processes

BRISK = {"heartbeat_ms": 20.0, "silence_ms_max": 600.0}
SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 1)),),
    outputs=(wire.TensorSpec(name="y", dtype="uint8", shape=(-1, 4)),),
    batch_max=8,
    slo_ms=1e6,
)
LARGE = wire.ModelSpec(
    inputs=SPEC.inputs,
    outputs=(wire.TensorSpec(name="y", dtype="uint8", shape=(-1, 2 * wire.INLINE_BYTES_MAX)),),
    batch_max=8,
    slo_ms=1e6,
)


class Frontend:
    """What takes outputs in a frontend: the table and the port."""

    def __init__(
        self,
        made: Processes,
        name: str = "frontend-1",
        runtime: Any = None,
        reader: SegmentReader | None = None,
    ) -> None:
        self.name = name
        self.table = RequestTable(10_000, 1 << 30)
        self.done, self.malformed = Told(), Told()
        self.runtime = runtime or made.runtime()
        self.port = ResultsPort(self.runtime.transport, name, self.table, self._completed, self.malformed, reader)
        self.addresses = self.port.listen("127.0.0.1")

    def _completed(self, completed: Completed, now: float) -> None:
        self.done((completed.call.id, bytes(completed.joined()[0][0])[:1]))

    @property
    def number(self) -> int:
        return int(self.addresses[-1].rpartition(":")[2])

    def opens(self, call: int, spec: wire.ModelSpec = SPEC, rows: int = 1) -> int:
        """A request is open. Returns its number."""
        parts = self.table.open(
            Call("ann", call, "m:1", spec, rows, 0.0, 1e9, False, form=AnswerForm("m:1", spec)), [b"x" * rows]
        )
        return parts[0].number

    def link(self) -> dict[str, Any]:
        (link,) = self.port.describe([], 1e9)
        return link

    async def until(self, holds: Any) -> None:
        """Returns after the turn in which `holds` became true."""
        turns = Told()
        self.runtime.hub.on_turn(turns)
        self.runtime.hub.schedule_turn()
        await turns.until(lambda _: holds())


def job(shares: dict[str, int], spec: wire.ModelSpec = SPEC) -> Job:
    """A batch that ended well, with one row for each of these {frontend: request}; a row is full of its request."""
    parts = tuple(
        wire.Part(frontend=name, request=request, attempt=0, rows=1, predicted_s=0.0)
        for name, request in shares.items()
    )
    action = wire.Infer(
        action=1, ref="m:1", earliest_s=0.0, latest_s=1.0, expected_s=0.1, batch=len(parts), parts=parts
    )
    made = Job(action, received_s=0.0, order=1)
    made.exec = Done(0.0, 0.1, 0.1)
    width = spec.outputs[0].shape[1]
    made.outputs = [memoryview(b"".join(bytes([request % 256]) * width for request in shares.values()))]
    return made


def worker(made: Processes, *frontends: Frontend, runtime: Any = None) -> OutputLinks:
    links = OutputLinks((runtime or made.runtime()).transport, "gpu_worker-1", "cpu:0")
    links.know({frontend.name: frontend.addresses for frontend in frontends})
    return links


def answers(*calls: int) -> list[tuple[int, bytes]]:
    return [(call, bytes([call % 256])) for call in calls]


@pytest.mark.parametrize("spec", [SPEC, LARGE], ids=["inline", "frames"])
@on_loop
async def test_what_a_half_dead_connection_swallowed_comes_again_on_the_next_one_once(spec: wire.ModelSpec) -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        calls = iter(range(1, 100))
        sent = 0
        for _ in range(3):
            for _ in range(5):
                call = next(calls)
                links.send(job({"frontend-1": frontend.opens(call, spec)}, spec))
                sent += 1
            await frontend.done.count(sent)
            assert swallow_port(frontend.number, os.getpid())
            for _ in range(5):
                call = next(calls)
                links.send(job({"frontend-1": frontend.opens(call, spec)}, spec))
                sent += 1
            await frontend.done.count(sent)
        assert frontend.done.items == answers(*range(1, sent + 1))
        assert frontend.port.for_nobody == 0
        assert frontend.port.taken.resent >= 3
        assert frontend.malformed.items == []
        await frontend.until(lambda: links.unconfirmed == 0)


@on_loop
async def test_an_answer_that_came_but_was_not_confirmed_in_time_is_taken_once() -> None:
    async with processes(heartbeat_ms=200.0, silence_ms_max=1000.0) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        for call in range(1, 11):
            links.send(job({"frontend-1": frontend.opens(call)}))
        await frontend.done.count(10)
        swallow_port(frontend.number, os.getpid())  # most likely before the frontend has said how far it came
        links.send(job({"frontend-1": frontend.opens(11)}))
        await frontend.done.count(11)
        assert frontend.done.items == answers(*range(1, 12))
        assert frontend.port.for_nobody == 0


@on_loop
async def test_links_tell_how_they_are() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        assert frontend.port.describe(["gpu_worker-1"], 0.0) == []
        links.send(job({"frontend-1": frontend.opens(1)}))
        await frontend.done.count(1)
        link = frontend.link()
        assert (link["peer"], link["role"], link["up"], link["lost"]) == ("gpu_worker-1", "gpu_worker", True, 0)
        assert link["heard_ago_s"] > 0
        swallow_port(frontend.number, os.getpid())
        links.send(job({"frontend-1": frontend.opens(2)}))
        await frontend.done.count(2)
        await frontend.until(lambda: frontend.link()["resent"] == 1)
        link = frontend.link()
        assert (link["up"], link["lost"]) == (True, 1)  # it was missed, or its successor was quicker


@on_loop
async def test_a_worker_that_leaves_is_no_lost_link() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        links.send(job({"frontend-1": frontend.opens(1)}))
        await frontend.done.count(1)
        links.close()
        await frontend.until(lambda: frontend.port.describe([], 0.0) == [])
        assert frontend.port.losses.total == 0


@pytest.mark.parametrize("ending", [False, True])
@on_loop
async def test_a_lost_link_is_a_warning_unless_the_process_is_ending(ending: bool) -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        runtime = made.runtime()
        links = worker(made, frontend, runtime=runtime)
        links.send(job({"frontend-1": frontend.opens(1)}))
        await frontend.done.count(1)
        runtime.transport.ending = ending
        turns = Told()
        runtime.hub.on_turn(turns)
        with structlog.testing.capture_logs() as lines:
            frontend.port.close()
            await turns.until(lambda _: [line for line in lines if line["event"] == "results_link_lost"])
        assert {line["log_level"] for line in lines if line["event"] == "results_link_lost"} == {
            "info" if ending else "warning"
        }
        links.close()


@on_loop
async def test_within_one_process_nothing_is_kept() -> None:
    async with processes(**BRISK) as made:
        here = made.runtime()
        frontend = Frontend(made, runtime=here)
        links = worker(made, frontend, runtime=here)
        for call in range(1, 4):
            links.send(job({"frontend-1": frontend.opens(call)}))
        assert links.unconfirmed == 0
        assert await frontend.done.count(3) == answers(1, 2, 3)


@pytest.mark.parametrize("guarded", ["tickets", "keys"])
@on_loop
async def test_two_frontends_that_name_one_address_harm_nobody(tmp_path: Path, guarded: str) -> None:
    folder = tmp_path / "keys"
    Keys.make(folder)
    async with processes(**BRISK, **({"keys_dir": str(folder)} if guarded == "keys" else {})) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        links.send(job({"frontend-1": frontend.opens(1)}))
        await frontend.done.count(1)
        both = {"frontend-1": frontend.addresses, "frontend-2": frontend.addresses[-1:]}
        links.know(both)
        for call in range(2, 12):  # the other one's requests have the same numbers
            request = frontend.opens(call)
            links.send(job({"frontend-2": request, "frontend-1": request}))
        await frontend.done.count(11)
        assert frontend.done.items == answers(*range(1, 12))
        if guarded == "keys":  # a ticket for another member does not even open the port
            await frontend.until(lambda: frontend.port.refused > 0)
        links.know({"frontend-1": frontend.addresses})
        links.send(job({"frontend-1": frontend.opens(12)}))
        await frontend.done.count(12)
        assert (frontend.port.losses.total, frontend.port.for_nobody) == (0, 0)


@on_loop
async def test_outputs_for_another_frontend_are_not_taken_for_ones_own() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        link: Link[Any, Any] = Link(
            made.runtime().transport, "gpu_worker-1", "frontend-1", FROM_RESULTS, Told(), Told(), to=PortKind.RESULTS
        )
        link.call(frontend.addresses)
        request = frontend.opens(1)
        answer = wire.Answer(request=request, attempt=0, rows=1, predicted_s=0.0, frames=1)
        blank = wire.Outputs(ref="m:1", device="cpu:0", batch=1, exec_s=0.0, answers=(answer,))
        link.send(replace(blank, frontend="frontend-2"), [b"\7" * 4])
        link.send(replace(blank, frontend="frontend-1"), [b"\1" * 4])
        assert await frontend.done.count(1) == answers(1)
        assert (frontend.port.taken.misaddressed, frontend.port.for_nobody) == (1, 0)


UNUSABLE = {
    "none": (),
    "unknown transport": ("garbage://x",),
    "a name that nobody knows": ("tcp://nosuchhost.invalid:1",),
    "only in memory": ("memory://nope",),
    "port 0": ("tcp://127.0.0.1:0",),
    "nobody listens": ("tcp://127.0.0.1:1",),
}


@pytest.mark.parametrize("addresses", UNUSABLE.values(), ids=UNUSABLE)
@on_loop
async def test_a_frontend_whose_address_cannot_be_used_costs_the_others_nothing(addresses: tuple[str, ...]) -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        links.know({"frontend-0": addresses, "frontend-1": frontend.addresses})
        for call in range(1, 11):
            links.send(job({"frontend-0": call, "frontend-1": frontend.opens(call)}))
        assert await frontend.done.count(10) == answers(*range(1, 11))


@on_loop
async def test_a_frontend_that_moved_gets_at_its_new_address_what_it_has_not_confirmed() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = OutputLinks(made.runtime().transport, "gpu_worker-1", "cpu:0")
        links.know({"frontend-1": ("tcp://127.0.0.1:1",)})
        links.send(job({"frontend-1": frontend.opens(1)}))
        links.know({"frontend-1": frontend.addresses})
        links.send(job({"frontend-1": frontend.opens(2)}))
        assert await frontend.done.count(2) == answers(1, 2)
        frontend.port.close()
        links.know({})


@on_loop
async def test_a_frontend_that_a_new_controller_does_not_know_yet_goes_on_getting_its_answers() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        links.send(job({"frontend-1": frontend.opens(1)}))
        links.send(job({"frontend-1": frontend.opens(2)}))
        links.know({})  # that controller's first word
        links.send(job({"frontend-1": frontend.opens(3)}))
        links.know({"frontend-1": frontend.addresses})
        links.send(job({"frontend-1": frontend.opens(4)}))
        assert await frontend.done.count(4) == answers(1, 2, 3, 4)
        assert frontend.port.refused == 0


@on_loop
async def test_a_frontend_that_was_taken_for_gone_gets_answers_again() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        links = worker(made, frontend)
        for call in range(1, 6):
            links.send(job({"frontend-1": frontend.opens(call)}))
        await frontend.done.count(5)
        swallow_port(frontend.number, os.getpid())
        links.know({})
        await frontend.until(lambda: links.frontends == 0)  # its link is lost, and nobody names it
        links.know({"frontend-1": frontend.addresses})
        links.send(job({"frontend-1": frontend.opens(6)}))
        assert await frontend.done.count(6) == answers(*range(1, 7))
        assert frontend.port.taken.doubles == 0


# -- inputs that frontends are asked for ------------------------------------------------------------------------------


MEBIBYTE = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 1 << 20)),),
    outputs=SPEC.outputs,
    batch_max=64,
    slo_ms=1e6,
)


class Fetches:
    """What of a worker fetches inputs, and how they came."""

    def __init__(self, made: Processes, frontend: Frontend) -> None:
        self.came = Told()  # (its frames, requests) of each envelope that brought inputs
        self.links = worker(made, frontend)
        self.links.tell(self)
        self.inputs = KeptInputs(self.links, Told(), SegmentReader())

    def fetched(self, frontend: str, message: wire.Fetched, frames: Iterator[wire.Buffer], now: float) -> None:
        """Each envelope has its own frames."""
        if not self.came.items or self.came.items[-1][0] is not frames:
            self.came((frames, []))
        self.came.items[-1][1].append(message.request)
        self.inputs.came(frontend, message, frames, now)

    def link_opened(self, frontend: str) -> None:
        """As a worker."""
        self.inputs.opened(frontend)

    def link_gone(self, frontend: str) -> None:
        """As a worker."""
        self.inputs.lost(frontend)

    def want(self, requests: Sequence[int]) -> Incoming:
        """A batch of these requests needs its inputs."""
        parts = tuple(
            wire.Part(
                frontend="frontend-1", request=request, attempt=0, rows=1, predicted_s=0.0,
                kept=wire.Kept(sizes=(1 << 20,)),
            )
            for request in requests
        )  # fmt: skip
        incoming = self.inputs.incoming(
            wire.Infer(action=1, ref="m:1", earliest_s=0.0, latest_s=1e9, expected_s=0.1, batch=len(parts), parts=parts)
        )
        self.inputs.fetch(incoming, 1.0)
        return incoming


def opens_large(frontend: Frontend, count: int) -> list[int]:
    """So many requests are open, with inputs of a mebibyte that are full of their call's number. Returns theirs."""
    numbers = []
    for call in range(count):
        opened = Call("ann", call, "m:1", MEBIBYTE, 1, 0.0, 1e9, False, form=AnswerForm("m:1", MEBIBYTE))
        (part,) = frontend.table.open(opened, [bytes([call]) * (1 << 20)])
        numbers.append(part.number)
    return numbers


@on_loop
async def test_inputs_of_a_large_batch_come_one_after_the_other_and_no_more_than_a_few_are_on_their_way() -> None:
    async with processes(**BRISK) as made:
        frontend = Frontend(made)
        fetches = Fetches(made, frontend)
        requests = opens_large(frontend, 40)
        asked_at_once = Told()
        frontend.runtime.hub.on_turn(lambda now: asked_at_once(frontend.port.fetched - len(fetches.came.items)))
        incoming = fetches.want(requests)
        await fetches.came.count(40)
        assert not incoming.awaited
        assert [bytes(tensors[0][:1]) for tensors in incoming.tensors if tensors] == [bytes([i]) for i in range(40)]
        assert [numbers for _, numbers in fetches.came.items] == [[request] for request in requests]
        assert max(asked_at_once.items) <= ON_WAY_BYTES >> 20
        fetches.links.close()


# -- outputs in slots of shared memory --------------------------------------------------------------------------------


class Unable(SegmentReader):
    """A reader that may not open the segments of others, as another user's, or one in another container."""

    def can_open(self, segment: str) -> bool:
        """No."""
        return False

    def read(self, slot: wire.Slot, sizes: Sequence[int]) -> list[memoryview] | None:
        """None."""
        return None


class CountingWriter(SegmentWriter):
    """Counts the slots that were filled."""

    def __init__(self, bytes_max: int = 64 << 20) -> None:
        super().__init__(bytes_max)
        self.filled = 0

    def put(self, tensors: Sequence[wire.Buffer]) -> wire.Slot | None:
        """As any writer."""
        slot = super().put(tensors)
        self.filled += slot is not None
        return slot


def sharing(made: Processes, writer: SegmentWriter, *frontends: Frontend, host: str = "") -> OutputLinks:
    """A worker that has memory to share with these frontends, which are on this machine, or on another host."""
    links = OutputLinks(made.runtime().transport, "gpu_worker-1", "cpu:0", writer)
    links.know({frontend.name: frontend.addresses for frontend in frontends})
    links.know_hosts([wire.Member(id=frontend.name, role="frontend", host=host or host_id()) for frontend in frontends])
    return links


@on_loop
async def test_large_outputs_lie_in_shared_memory_until_they_are_confirmed() -> None:
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made), CountingWriter()
        links = sharing(made, writer, frontend)
        for call in range(1, 6):
            links.send(job({"frontend-1": frontend.opens(call, LARGE)}, LARGE))
        assert (writer.filled, writer.bytes_used > 0) == (5, True)
        assert await frontend.done.count(5) == answers(*range(1, 6))
        await frontend.until(lambda: links.unconfirmed == 0)
        assert writer.bytes_used == 0
        assert frontend.malformed.items == []
        links.close()
        frontend.port.close()


class Batch(bytearray):
    """All outputs of a batch, of which one can tell whether they are still in memory."""


@pytest.mark.parametrize("room", [True, False])
@on_loop
async def test_a_batch_of_large_and_small_outputs_leaves_memory_once_the_large_ones_lie_in_slots(room: bool) -> None:
    """Unless something of it still has to be sent as frames."""
    rows = 3 * wire.INLINE_BYTES_MAX
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made), CountingWriter(64 << 20 if room else 0)
        links = sharing(made, writer, frontend)
        small = frontend.opens(1)
        ended = job({"frontend-1": small})
        outputs = Batch(bytes([1]) * 4 + bytes([2]) * 4 * rows)
        assert isinstance(ended.action, wire.Infer)
        (part,) = ended.action.parts
        large = replace(part, request=frontend.opens(2, replace(SPEC, batch_max=rows), rows), rows=rows)
        ended.action = replace(ended.action, batch=1 + rows, parts=(part, large))
        ended.outputs = [memoryview(outputs)]
        there = weakref.ref(outputs)
        del outputs
        frontend.port.close()  # nothing is confirmed
        links.send(ended)
        del ended
        turns = Told()
        frontend.runtime.hub.on_turn(turns)
        frontend.runtime.hub.schedule_turn()
        await turns.count(1)
        gc.collect()
        assert (there() is None, links.unconfirmed, writer.filled) == (room, 1, room)
        links.close()


@pytest.mark.parametrize("why", ["on another host", "no room", "ending"])
@on_loop
async def test_who_cannot_be_given_slots_gets_frames(why: str) -> None:
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made), CountingWriter(0 if why == "no room" else 64 << 20)
        links = sharing(made, writer, frontend, host="elsewhere" if why == "on another host" else "")
        if why == "ending":
            assert links.share_no_more()
        links.send(job({"frontend-1": frontend.opens(1, LARGE)}, LARGE))
        assert await frontend.done.count(1) == answers(1)
        assert writer.filled == 0
        links.close()


@on_loop
async def test_a_frontend_that_cannot_read_slots_gets_the_same_as_frames_once_and_in_order() -> None:
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made, reader=Unable()), CountingWriter()
        links = sharing(made, writer, frontend)
        for call in range(1, 6):
            links.send(job({"frontend-1": frontend.opens(call, LARGE)}, LARGE))
            links.send(job({"frontend-1": frontend.opens(call + 100)}))
        calls = [call for first in range(1, 6) for call in (first, first + 100)]
        assert await frontend.done.count(10) == [(call, bytes([i])) for i, call in enumerate(calls, 1)]
        filled = writer.filled
        assert filled == 5
        assert writer.bytes_used == 0
        links.send(job({"frontend-1": frontend.opens(6, LARGE)}, LARGE))
        assert (await frontend.done.count(11))[10:] == [(6, bytes([11]))]
        assert writer.filled == filled, "it is not tried again on this link"
        assert (frontend.port.for_nobody, frontend.malformed.items) == (0, [])
        links.close()


@on_loop
async def test_outputs_in_slots_come_again_on_the_link_that_replaces_a_lost_one_once() -> None:
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made), CountingWriter()
        links = sharing(made, writer, frontend)
        links.send(job({"frontend-1": frontend.opens(1, LARGE)}, LARGE))
        await frontend.done.count(1)
        assert swallow_port(frontend.number, os.getpid())
        for call in range(2, 7):
            links.send(job({"frontend-1": frontend.opens(call, LARGE)}, LARGE))
        assert await frontend.done.count(6) == answers(*range(1, 7))
        await frontend.until(lambda: links.unconfirmed == 0)
        assert writer.bytes_used == 0
        assert frontend.port.for_nobody == 0
        links.close()


@on_loop
async def test_outputs_of_one_batch_beyond_all_that_may_be_kept_arrive() -> None:
    rows, width = 8, BYTES_MAX // 7
    spec = wire.ModelSpec(
        inputs=SPEC.inputs,
        outputs=(wire.TensorSpec(name="y", dtype="uint8", shape=(-1, width)),),
        batch_max=rows,
        slo_ms=1e6,
    )
    async with processes(heartbeat_ms=20.0, silence_ms_max=5000.0) as made:
        frontend, writer = Frontend(made), CountingWriter(128 << 20)
        links = sharing(made, writer, frontend)
        batch = job({"frontend-1": frontend.opens(1, spec)}, spec)
        assert isinstance(batch.action, wire.Infer)
        (part,) = batch.action.parts
        parts = (part, *(replace(part, request=frontend.opens(call, spec)) for call in range(2, rows + 1)))
        batch.action = replace(batch.action, batch=rows, parts=parts)
        batch.outputs = [memoryview(b"".join(bytes([call]) * width for call in range(1, rows + 1)))]
        links.send(batch)
        assert await frontend.done.count(rows) == answers(*range(1, rows + 1))
        await frontend.until(lambda: links.unconfirmed == 0)
        assert writer.bytes_used == 0
        links.close()


@on_loop
async def test_slots_of_a_frontend_that_is_gone_are_free() -> None:
    async with processes(**BRISK) as made:
        frontend, writer = Frontend(made), CountingWriter()
        links = sharing(made, writer, frontend)
        links.send(job({"frontend-1": frontend.opens(1, LARGE)}, LARGE))
        await frontend.done.count(1)
        swallow_port(frontend.number, os.getpid())
        links.send(job({"frontend-1": frontend.opens(2, LARGE)}, LARGE))
        assert writer.bytes_used > 0
        links.know({})
        await frontend.until(lambda: links.frontends == 0)
        assert writer.bytes_used == 0
        links.close()


@on_loop
async def test_within_one_process_large_outputs_pass_by_without_a_copy() -> None:
    async with processes(**BRISK) as made:
        here, writer = made.runtime(), CountingWriter()
        frontend = Frontend(made, runtime=here)
        links = OutputLinks(here.transport, "gpu_worker-1", "cpu:0", writer)
        links.know({frontend.name: frontend.addresses})
        links.know_hosts([wire.Member(id=frontend.name, role="frontend", host=host_id())])
        links.send(job({"frontend-1": frontend.opens(1, LARGE)}, LARGE))
        assert await frontend.done.count(1) == answers(1)
        assert writer.filled == 0
        links.close()
