"""frontend/inputs.py: where large inputs are, and until when."""

from collections.abc import Iterator

import pytest

from frontend.core.open_calls import Call, CallPart
from frontend.core.requests import RequestTable
from frontend.inputs import LargeInputs
from mesh import digests, wire
from mesh.process.segments import SegmentReader, SegmentWriter

TENSOR = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 2))
SPEC = wire.ModelSpec(inputs=(TENSOR,), outputs=(TENSOR,), batch_max=4, slo_ms=50.0)
NEAR = wire.Member(id="gpu_worker-1", role="gpu_worker", host="here")
MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[SegmentWriter]:
    memory = SegmentWriter(64 * MIB)
    yield memory
    memory.close()


@pytest.fixture
def inputs(memory: SegmentWriter) -> LargeInputs:
    """Of a frontend beside a worker."""
    inputs = LargeInputs(memory, "here")
    inputs.table_changed([NEAR])
    return inputs


def part(ref: str = "m:1", size: int = 40_000, number: int = 1) -> CallPart:
    call = Call("ann", number, ref, SPEC, 1, 0.0, 1.0, framed=False)
    return CallPart(call, number, 1, [b"ab", bytes([number % 256]) * size])


def read(kept: wire.Kept) -> list[bytes] | None:
    if kept.slot is None:
        return None
    reader = SegmentReader()
    views = reader.read(kept.slot, kept.sizes)
    return None if views is None else [bytes(view) for view in views]


def test_inputs_are_written_once_and_gone_when_the_part_has_ended(inputs: LargeInputs, memory: SegmentWriter) -> None:
    one = part()
    tensors = list(one.tensors)
    kept = inputs.keep(one)
    assert kept.sizes == (2, 40_000)
    assert (kept.whole, kept.sample) == (digests.whole(tensors), digests.sample(tensors))
    assert read(kept) == tensors
    assert inputs.keep(one) is kept
    ended = [one]
    inputs.free(ended)
    assert ended == []
    assert read(kept) is None
    assert memory.bytes_used == 0
    inputs.free([one])


@pytest.mark.parametrize(
    "members",
    [
        [],
        [wire.Member(id="gpu_worker-1", role="gpu_worker", host="elsewhere")],
        [wire.Member(id="controller-1", role="controller", host="here")],
    ],
    ids=["none", "elsewhere", "no worker"],
)
def test_nothing_is_written_where_no_worker_could_read_it(
    members: list[wire.Member], inputs: LargeInputs, memory: SegmentWriter
) -> None:
    inputs.table_changed(members)
    kept = inputs.keep(part())
    assert (kept.slot, kept.sizes, memory.bytes_used) == (None, (2, 40_000), 0)
    assert kept.whole == digests.whole(part().tensors)
    assert inputs.crowded == 0


def test_without_room_inputs_are_only_kept(inputs: LargeInputs) -> None:
    assert inputs.keep(part(size=17 * MIB)).slot is None
    assert inputs.crowded == 1


@pytest.mark.parametrize("shared_mb", [0, 15])
def test_where_no_memory_is_shared_no_request_counts_as_one_too_many(shared_mb: int) -> None:
    memory = SegmentWriter(shared_mb * MIB)
    inputs = LargeInputs(memory, "here")
    inputs.table_changed([NEAR])
    assert inputs.keep(part()).slot is None
    assert inputs.crowded == 0
    memory.close()


def test_one_model_leaves_room_for_others(inputs: LargeInputs, memory: SegmentWriter) -> None:
    parts = []
    while inputs.keep(greedy := part("greedy:1", 1 << 20, len(parts) + 1)).slot is not None:
        parts.append(greedy)
    assert 0.7 < memory.bytes_used / memory.bytes_max < 0.9
    other = part("other:1", 1 << 20)
    assert inputs.keep(other).slot is not None
    inputs.free([*parts, other])
    assert memory.bytes_used == 0
    assert inputs.keep(part("greedy:1", 1 << 20)).slot is not None


def test_the_table_tells_of_each_part_that_has_ended(inputs: LargeInputs, memory: SegmentWriter) -> None:
    table = RequestTable(10, 1 << 30)
    whole = Call("ann", 1, "m:1", SPEC, 8, 0.0, 1.0, framed=False)  # in two parts
    for one in table.open(whole, [bytes(8 * 40_000)]):
        table.submitted(one, "controller-1")
        inputs.keep(one)
    heir = Call("bob", 2, "m:1", SPEC, 8, 0.0, 1.0, framed=False)
    table.wait(heir)
    table.hand_over(whole, heir)
    assert table.released == []  # they go on
    first, second = heir.parts
    table.outputs(first.number, [b""], 8, 0.0, "cpu:0")
    table.outputs(second.number, [b""], 8, 0.0, "cpu:0")
    assert table.released == [first, second]
    inputs.free(table.released)
    assert (table.released, memory.bytes_used) == ([], 0)


def test_halves_are_written_anew(inputs: LargeInputs, memory: SegmentWriter) -> None:
    spec = wire.ModelSpec(
        inputs=(wire.TensorSpec(name="x", dtype="uint8", shape=(-1, -1), dims=("n",)),),
        outputs=(TENSOR,),
        batch_max=4,
        slo_ms=50.0,
        dims=(wire.Dim(name="n", least=1, most=1 << 20),),
    )
    table = RequestTable(10, 1 << 30)
    data = bytes(range(256)) * 1024
    call = Call("ann", 1, "m:1", spec, 2, 0.0, 1.0, framed=False, extents=(len(data) // 2,))
    (whole,) = table.open(call, [data])
    kept = inputs.keep(whole)
    halves = table.halve(whole.number, 0)
    assert table.released == [whole]
    inputs.free(table.released)
    assert read(kept) is None
    assert [read(inputs.keep(half)) for half in halves] == [[data[: len(data) // 2]], [data[len(data) // 2 :]]]
    assert table.inputs(whole.number) == ()
    table.end(call)
    assert table.released == list(halves)
    inputs.free(table.released)
    assert memory.bytes_used == 0
