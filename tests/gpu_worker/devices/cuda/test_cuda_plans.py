"""What goes where and when on a device with CUDA graphs; decided without a device."""

import itertools
from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.layouts import ALIGNMENT
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.plans import (
    MIB,
    RESERVE_BYTES,
    ExecutionBuffer,
    StreamForecast,
    lay_out,
    make_room,
)
from gpu_worker.devices.cuda.transfer.copies import BUFFERS, CopyQueue, Piece, Transfer, pieces
from mesh import wire
from tests.messages import names

GIB = 1 << 30

# -- inputs and outputs ----------------------------------------------------------------------------------------------

SPEC = wire.ModelSpec(
    inputs=(
        wire.TensorSpec(name="x", dtype="float32", shape=(-1, 65)),
        wire.TensorSpec(name="i", dtype="int64", shape=(-1,)),
    ),
    outputs=(wire.TensorSpec(name="y", dtype="bool", shape=(-1, 3)),),
    batch_max=8,
    slo_ms=1.0,
)


def test_inputs_then_outputs_lie_one_after_the_other_each_aligned() -> None:
    layout = lay_out(SPEC, 2)
    assert [(place.at, place.size, place.shape) for place in layout.inputs] == [(0, 520, (2, 65)), (768, 16, (2,))]
    assert [(place.at, place.size, place.shape) for place in layout.outputs] == [(1024, 6, (2, 3))]
    assert (layout.inputs_end, layout.outputs_at, layout.end) == (1024, 1024, 1280)


@given(size=st.integers(1, 64))
def test_places_never_overlap(size: int) -> None:
    layout = lay_out(SPEC, size)
    places = [*layout.inputs, *layout.outputs]
    assert all(place.at % ALIGNMENT == 0 for place in places)
    assert all(a.at + a.size <= b.at for a, b in itertools.pairwise(places))
    assert places[-1].at + places[-1].size <= layout.end


# -- LOAD -------------------------------------------------------------------------------------------------------------


def test_pieces_follow_the_pages_and_the_last_is_what_remains() -> None:
    assert pieces(250, (4, 0), 200, 128) == [Piece(0, 800, 128), Piece(128, 928, 72), Piece(200, 0, 50)]


def test_an_image_of_nothing_is_one_piece_of_nothing() -> None:
    assert pieces(0, (3,), 200, 128) == [Piece(0, 600, 0)]


@given(
    image=st.integers(1, 2000),
    pages=st.lists(st.integers(0, 30), unique=True, min_size=20, max_size=20),
    page=st.integers(100, 300),
    piece=st.integers(1, 400),
)
def test_pieces_copy_every_byte_once_to_where_its_page_is(image: int, pages: list[int], page: int, piece: int) -> None:
    found = pieces(image, pages, page, piece)
    assert [p.source for p in found] == [sum(q.size for q in found[:i]) for i in range(len(found))]
    assert sum(p.size for p in found) == image
    for p in found:
        assert 0 < p.size <= piece
        assert p.target == pages[p.source // page] * page + p.source % page
        assert p.source // page == (p.source + p.size - 1) // page, "inside one page"


def begun(copies: CopyQueue[str]) -> list[tuple[str, int]]:
    """Returns (load, source) of all pieces that may be started now."""
    started = []
    while (found := copies.next()) is not None:
        started.append((found[0].load, found[1].source))
    return started


def test_two_pieces_are_on_their_way_at_most_and_loads_follow_each_other() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(3)])
    copies.add("b", [Piece(source, 0, 1) for source in range(2)])
    assert begun(copies) == [("a", 0), ("a", 1)]
    assert copies.ended() is None
    assert begun(copies) == [("a", 2)]
    assert copies.ended() is None
    assert begun(copies) == [("b", 0)]
    assert copies.ended() == "a"
    assert begun(copies) == [("b", 1)]
    assert copies.ended() is None
    assert copies.ended() == "b"
    assert begun(copies) == []


def test_a_load_can_be_dropped_until_its_first_piece_is_started() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(0, 0, 1), Piece(1, 0, 1)])
    copies.add("b", [Piece(0, 0, 1)])
    copies.add("c", [Piece(0, 0, 1)])
    assert copies.due() == "a"
    assert begun(copies) == [("a", 0), ("a", 1)]
    assert copies.due() is None, "there is no room for b now"
    assert copies.ended() is None
    assert copies.due() == "b"
    assert copies.drop() == "b"
    assert begun(copies) == [("c", 0)]
    assert [copies.ended(), copies.ended()] == ["a", "c"]


@given(st.lists(st.integers(1, 5), max_size=6), st.randoms(use_true_random=False))
def test_every_load_ends_once_and_in_order(sizes: list[int], rng: object) -> None:
    copies: CopyQueue[int] = CopyQueue()
    waiting, ended, flying = deque(enumerate(sizes)), [], 0
    while waiting or flying:
        if waiting and (not flying or rng.random() < 0.5):  # type: ignore[attr-defined]
            load, count = waiting.popleft()
            copies.add(load, [Piece(i, 0, 1) for i in range(count)])
        while copies.next() is not None:
            flying += 1
        assert 1 <= flying <= 2
        done = copies.ended()
        flying -= 1
        ended += [] if done is None else [done]
    assert ended == list(range(len(sizes)))


def test_a_piece_that_cannot_be_started_ends_its_load_and_no_other() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(3)])
    copies.add("b", [Piece(0, 0, 1)])
    first, second = copies.next(), copies.next()
    assert first is not None
    assert second is not None
    assert copies.failed(second[0]) is None, "the first piece of a is on its way"
    assert begun(copies) == [("b", 0)]
    assert copies.ended() == "a"
    assert copies.ended() == "b"
    copies.add("c", [Piece(source, 0, 1) for source in range(3)])
    found = copies.next()
    assert found is not None
    assert copies.failed(found[0]) == "c"
    assert copies.next() is None


def test_pieces_from_disk_are_read_ahead_into_a_few_buffers_and_copied_in_order() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(5)], from_disk=True)
    copies.add("b", [Piece(0, 0, 1)])
    assert copies.due() == "a"
    reads: dict[str, Transfer[str]] = {}
    assert to_be_read(copies, reads) == [("a", 0, 0), ("a", 1, 1), ("a", 2, 2)]
    assert copies.due() is None, "it has begun"
    assert begun(copies) == [], "nothing of it was read yet, and b is behind it"
    a = reads["a"]
    assert [copies.read(a), begun(copies)] == [None, [("a", 0)]]
    assert [copies.read(a), copies.read(a), begun(copies)] == [None, None, [("a", 1)]]
    assert to_be_read(copies) == [], "two are on their way, and one has to wait for that"
    assert copies.ended() is None
    assert [to_be_read(copies), begun(copies)] == [[("a", 3, 0)], [("a", 2)]]
    assert [copies.ended(), copies.ended(), to_be_read(copies)] == [None, None, [("a", 4, 1)]]
    assert [copies.read(a), copies.read(a), begun(copies)] == [None, None, [("a", 3), ("a", 4)]]
    assert copies.ended() is None
    assert begun(copies) == [("b", 0)], "all of a is on its way"
    assert [copies.ended(), copies.ended()] == ["a", "b"]
    copies.check()


def to_be_read(
    copies: CopyQueue[str], reads: dict[str, Transfer[str]] | None = None
) -> list[tuple[str, int, int | None]]:
    """(load, source, buffer) of all pieces that may be read now; `reads` gets their {load: transfer}."""
    found = []
    while (wanted := copies.to_read()) is not None:
        if reads is not None:
            reads[wanted[0].load] = wanted[0]
        found.append((wanted[0].load, wanted[1].source, wanted[1].buffer))
    return found


def test_a_load_from_disk_has_its_turn_when_those_before_it_are_on_their_way() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(3)])
    copies.add("b", [Piece(0, 0, 1)], from_disk=True)
    assert begun(copies) == [("a", 0), ("a", 1)]
    assert [copies.due(), to_be_read(copies)] == [None, []]
    assert [copies.ended(), begun(copies)] == [None, [("a", 2)]]
    assert copies.due() == "b", "though two copies are on their way: it is read first"
    assert copies.drop() == "b"
    assert [copies.ended(), copies.ended()] == [None, "a"]
    copies.check()


def test_a_load_that_cannot_be_read_is_over_when_nothing_of_it_is_on_its_way() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(5)], from_disk=True)
    copies.add("b", [Piece(0, 0, 1)], from_disk=True)
    reads: dict[str, Transfer[str]] = {}
    assert len(to_be_read(copies, reads)) == 3
    a = reads["a"]
    copies.read(a)
    assert begun(copies) == [("a", 0)]
    assert copies.unreadable(a) is None, "one piece is copied, and another is read"
    assert to_be_read(copies) == [], "the thread that reads is not done with it"
    assert copies.read(a) is None
    copies.check()
    assert to_be_read(copies, reads) == [("b", 0, 1)]
    assert copies.ended() == "a"
    copies.check()
    copies.read(reads["b"])
    assert [begun(copies), copies.ended()] == [[("b", 0)], "b"]


def test_a_piece_from_disk_that_cannot_be_started_ends_its_load_when_its_reads_have_ended() -> None:
    copies: CopyQueue[str] = CopyQueue()
    copies.add("a", [Piece(source, 0, 1) for source in range(5)], from_disk=True)
    reads: dict[str, Transfer[str]] = {}
    assert len(to_be_read(copies, reads)) == 3
    a = reads["a"]
    copies.read(a)
    copies.read(a)
    assert copies.next() is not None
    assert copies.failed(a) is None
    copies.check()
    assert copies.read(a) == "a"
    copies.check()


@given(
    loads=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.sampled_from(["ok", "read", "start"])), max_size=8),
    rng=st.randoms(use_true_random=False),
)
def test_whatever_comes_first_every_load_ends_once_and_every_buffer_is_free_again(
    loads: list[tuple[int, bool, str]], rng: Random
) -> None:
    copies: CopyQueue[int] = CopyQueue()
    left, ended = deque(enumerate(loads)), []
    reading: deque[Transfer[int]] = deque()
    flying = 0

    def add() -> int | None:
        number, (count, from_disk, _) = left.popleft()
        copies.add(number, [Piece(i, 0, 1) for i in range(count)], from_disk=from_disk)
        return None

    def finish_read() -> int | None:
        transfer = reading.popleft()
        fails = loads[transfer.load][2] == "read" and rng.random() < 0.4
        return copies.unreadable(transfer) if fails else copies.read(transfer)

    def finish_copy() -> int | None:
        nonlocal flying
        flying -= 1
        return copies.ended()

    while left or reading or flying:
        choices = [add] * bool(left) + [finish_read] * bool(reading) + [finish_copy] * bool(flying)
        over = [rng.choice(choices)()]
        while (wanted := copies.to_read()) is not None:
            reading.append(wanted[0])
        while (found := copies.next()) is not None:
            if loads[found[0].load][2] == "start" and rng.random() < 0.4:
                over.append(copies.failed(found[0]))
            else:
                flying += 1
            while (wanted := copies.to_read()) is not None:
                reading.append(wanted[0])
        copies.check()
        ended += [load for load in over if load is not None]
    assert sorted(ended) == list(range(len(loads)))
    assert copies.idle
    copies.check()
    copies.add(-1, [Piece(i, 0, 1) for i in range(BUFFERS)], from_disk=True)
    assert [copies.to_read() is not None for _ in range(BUFFERS)] == [True] * BUFFERS


# -- EXEC -------------------------------------------------------------------------------------------------------------


def test_the_window_is_filled_when_it_holds_something_else_or_is_spoilt() -> None:
    buffer = ExecutionBuffer()
    assert [buffer.switch_to(n) for n in (1, 1, 2, 1, 1)] == [True, False, True, True, False]
    buffer.invalidate_if(2)
    assert not buffer.switch_to(1), "it was another's"
    buffer.invalidate_if(1)
    assert buffer.switch_to(1)
    buffer.invalidate()
    assert buffer.switch_to(1)


def test_what_is_issued_starts_when_what_runs_is_expected_to_end() -> None:
    lane = StreamForecast()
    assert (lane.busy, lane.start_s(10.0)) == (False, 10.0)
    lane.issued(10.0, 2.0)
    assert (lane.busy, lane.start_s(10.5)) == (True, 12.0)
    lane.issued(10.5, 3.0)
    assert lane.start_s(11.0) == 15.0
    assert lane.start_s(16.0) == 16.0, "it takes longer than expected: now at the earliest"
    lane.ended(11.0)
    assert lane.start_s(11.0) == 15.0
    lane.ended(13.0)
    assert (lane.busy, lane.start_s(13.0)) == (False, 13.0)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_arena_takes_what_windows_and_the_rest_leave() -> None:
    room = make_room(
        "cuda:0", free=79 * GIB, total=80 * GIB, page_bytes=16 * MIB, arena_bytes=0, buffer_bytes=512 * MIB
    )
    assert (room.buffer_pages, room.buffer_bytes) == (32, 512 * MIB)
    kept = int(80 * GIB * 0.06) + 2 * 512 * MIB
    assert room.pages == (79 * GIB - kept) // (16 * MIB)
    assert 79 * GIB - kept - 16 * MIB < room.arena_bytes <= 79 * GIB - kept


def test_a_window_is_a_whole_number_of_pages() -> None:
    room = make_room("cuda:0", free=GIB, total=GIB, page_bytes=16 * MIB, arena_bytes=100 * MIB, buffer_bytes=17 * MIB)
    assert (room.pages, room.buffer_pages) == (6, 2)


def test_an_arena_larger_than_what_is_free_is_refused_with_the_figures() -> None:
    with pytest.raises(DeviceError) as raised:
        make_room("cuda:1", free=GIB, total=80 * GIB, page_bytes=16 * MIB, arena_bytes=2 * GIB, buffer_bytes=512 * MIB)
    assert names(str(raised.value), "cuda:1", 1024, 81920, 2560, "GEARMESH_ARENA_MB", "GEARMESH_WINDOW_MB")


def test_a_device_that_another_process_fills_is_refused_with_what_is_kept() -> None:
    with pytest.raises(DeviceError, match=r"cuda:0.*2048.*8192.*3584"):
        make_room("cuda:0", free=2 * GIB, total=8 * GIB, page_bytes=16 * MIB, arena_bytes=0, buffer_bytes=512 * MIB)
    assert RESERVE_BYTES == 3 * GIB


def test_an_arena_smaller_than_a_page_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"\b8\b.*\b16\b.*GEARMESH_ARENA_MB"):
        make_room("cuda:0", free=GIB, total=GIB, page_bytes=16 * MIB, arena_bytes=8 * MIB, buffer_bytes=16 * MIB)
