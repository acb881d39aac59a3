"""mesh/process/segments.py: memory that processes share, in this one and with real others."""

import contextlib
import fcntl
import gc
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.process.segments import (
    CELLS_AT,
    HEADER,
    MEMFD_NAME,
    SLOT_BYTES_MAX,
    TOKEN_BYTES,
    SegmentReader,
    SegmentWriter,
)
from mesh.slabs import GRANULE_BYTES, SLAB_BYTES
from mesh.wire import Slot
from tests.memory import mapped_bytes, open_files

SIZES = (5, 0, 70_000)
MIB = 1 << 20


def tensors(seed: int) -> list[bytes]:
    return [random.Random(seed).randbytes(size) for size in SIZES]


@pytest.fixture
def files() -> Iterator[None]:
    """No file is left open at the end."""
    before = open_files()
    yield
    gc.collect()
    assert open_files() - before == set()


@pytest.fixture
def writer(files: None) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(64 * MIB)
    yield writer
    writer.close()


@pytest.fixture
def reader(files: None) -> Iterator[SegmentReader]:
    reader = SegmentReader()
    yield reader
    reader.close()


def put(writer: SegmentWriter, seed: int = 1) -> Slot:
    slot = writer.put(tensors(seed))
    assert slot is not None
    return slot


def read(reader: SegmentReader, slot: Slot) -> list[bytes] | None:
    views = reader.read(slot, SIZES)
    return None if views is None else [bytes(view) for view in views]


def test_what_is_put_is_read_and_is_gone_once_it_was_freed(writer: SegmentWriter, reader: SegmentReader) -> None:
    first, second = put(writer, 1), put(writer, 2)
    assert read(reader, first) == tensors(1)
    assert read(reader, second) == tensors(2)
    assert reader.holds(first)
    writer.free(first)
    assert not reader.holds(first)
    assert reader.read(first, SIZES) is None
    assert read(reader, second) == tensors(2)


def test_a_reader_finds_that_the_slot_was_used_anew_while_it_read(writer: SegmentWriter, reader: SegmentReader) -> None:
    slot = put(writer, 1)
    views = reader.read(slot, SIZES)
    assert views is not None
    head = bytes(views[2][:1000])
    writer.free(slot)
    others = [put(writer, 2) for _ in range(700)]  # all places, so that one of them is that of `slot`
    assert any(other.offset == slot.offset for other in others)
    assert head + bytes(views[2][1000:]) != tensors(1)[2]  # torn
    assert not reader.holds(slot)


def test_what_is_read_cannot_be_written(writer: SegmentWriter, reader: SegmentReader) -> None:
    views = reader.read(put(writer), SIZES)
    assert views is not None
    assert all(view.readonly and view.format == "B" for view in views)
    pid, file, _ = writer.name.split(".")
    path = f"/proc/{pid}/fd/{file}"
    assert os.stat(path).st_mode & 0o777 == 0o400


def test_nobody_can_shrink_the_segment(writer: SegmentWriter) -> None:
    put(writer)
    file = int(writer.name.split(".")[1])
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(file, 0)
    assert not os.get_inheritable(file)


def test_freeing_again_or_what_is_not_ours_changes_nothing(writer: SegmentWriter, reader: SegmentReader) -> None:
    slot = put(writer)
    writer.free(slot)
    writer.free(slot)
    used = [put(writer) for _ in range(6)]
    writer.free(slot)
    for other in used:
        for wrong in (
            msgspec.structs.replace(other, segment="1.2.ab"),
            msgspec.structs.replace(other, offset=other.offset + 1),
            msgspec.structs.replace(other, offset=1 << 50),
            msgspec.structs.replace(other, generation=other.generation + 99),
        ):
            writer.free(wrong)
    assert all(read(reader, other) == tensors(1) for other in used)
    for other in used:
        writer.free(other)
    assert writer.bytes_used == 0


def test_there_is_a_limit(writer: SegmentWriter) -> None:
    assert writer.put([bytes(SLOT_BYTES_MAX), b"x"]) is None
    slots = [writer.put([bytes(SLOT_BYTES_MAX)]) for _ in range(5)]
    assert [slot is not None for slot in slots] == [True] * 4 + [False]
    assert writer.bytes_used == writer.bytes_max == 64 * MIB
    assert writer.put([b"x"]) is None
    assert slots[0] is not None
    writer.free(slots[0])
    assert writer.put([b"x"]) is not None


def test_a_writer_without_memory_puts_nothing() -> None:
    writer = SegmentWriter(0)
    assert writer.put([b"x"]) is None
    writer.close()


def test_after_closing_nothing_can_be_put_and_old_readers_keep_what_they_look_at(reader: SegmentReader) -> None:
    writer = SegmentWriter(16 * MIB)
    slot = put(writer)
    views = reader.read(slot, SIZES)
    assert views is not None
    writer.close()
    writer.free(slot)
    assert writer.put([b"x"]) is None
    assert writer.view(slot, SIZES) is None
    assert [bytes(view) for view in views] == tensors(1)
    reader.sweep()
    assert [bytes(view) for view in views] == tensors(1)
    assert reader.read(slot, SIZES) is None


def test_the_owner_looks_at_its_slots_and_copies_them(writer: SegmentWriter) -> None:
    slot = put(writer)
    assert writer.copy_of(slot, SIZES) == tensors(1)
    views = writer.view(slot, SIZES)
    assert views is not None
    assert all(view.readonly for view in views)
    assert writer.view(slot, (1, 80_000)) is None
    writer.free(slot)
    assert writer.view(slot, SIZES) is None
    assert writer.copy_of(slot, SIZES) is None


@given(
    segment=st.one_of(st.none(), st.text(max_size=30), st.from_regex(r"\A[0-9]{1,9}\.[0-9]{1,4}\.[0-9a-f]{0,32}\Z")),
    offset=st.one_of(st.integers(0, 1 << 53), st.integers(0, 4000).map(lambda at: at * GRANULE_BYTES)),
    generation=st.integers(0, 4),
    sizes=st.lists(st.integers(0, 1 << 53), max_size=4),
)
def test_no_slot_that_anybody_makes_up_reads_beyond_what_was_put(
    segment: str | None, offset: int, generation: int, sizes: list[int]
) -> None:
    writer, reader = SegmentWriter(16 * MIB), SegmentReader()
    try:
        slot = put(writer)
        made_up = Slot(segment=segment or slot.segment, offset=offset, generation=generation)
        views = reader.read(made_up, sizes)
        if views is None:
            assert made_up != slot or sum(sizes) > sum(SIZES)
        else:
            assert made_up == slot
            assert [len(view) for view in views] == sizes
            assert sum(sizes) <= sum(SIZES)
    finally:
        writer.close()
        reader.close()


def test_another_file_at_that_place_is_not_taken_for_the_segment(writer: SegmentWriter, reader: SegmentReader) -> None:
    slot = put(writer)
    pid, file, secret = writer.name.split(".")
    with contextlib.ExitStack() as stack:
        read_end, write_end = os.pipe()
        others = [read_end, write_end, os.open("/dev/null", os.O_RDONLY), os.memfd_create(MEMFD_NAME)]
        others.append(os.memfd_create(MEMFD_NAME, os.MFD_ALLOW_SEALING))
        os.ftruncate(others[-1], SLAB_BYTES)
        fcntl.fcntl(others[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        for other in others:
            stack.callback(os.close, other)
            assert reader.read(msgspec.structs.replace(slot, segment=f"{pid}.{other}.{secret}"), SIZES) is None
    wrong = ("0" if secret[0] != "0" else "1") + secret[1:]
    for name in (f"{pid}.{file}.{wrong}", f"{pid}.{file}", f"{pid}/../{pid}.{file}.{secret}", f"-1.{file}.{secret}"):
        assert reader.read(msgspec.structs.replace(slot, segment=name), SIZES) is None
    assert read(reader, slot) == tensors(1)


SECRET = b"s" * TOKEN_BYTES
NUMBER = st.one_of(st.integers(0, 5), st.integers(0, 8192), st.integers(0, (1 << 64) - 1))


@given(
    size=st.one_of(st.integers(0, 2 * HEADER.size), st.integers(0, 8192), st.integers(0, 1 << 63)),
    data=NUMBER,
    granules=NUMBER,
    cells=st.lists(NUMBER, min_size=1, max_size=6),
    offset=st.integers(0, 1 << 53),
    sizes=st.lists(st.integers(0, 8192), max_size=3),
)
def test_a_file_that_only_looks_like_a_segment_reads_as_nothing_or_as_what_is_there(
    size: int, data: int, granules: int, cells: list[int], offset: int, sizes: list[int]
) -> None:
    """Who may write to a socket of the mesh may name any file of his: of any size, with anything in it."""
    file, reader = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), SegmentReader()
    try:
        head = HEADER.pack(SECRET, data, granules).ljust(CELLS_AT, b"\0") + struct.pack(f"={len(cells)}Q", *cells)
        os.write(file, head[:size])
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        slot = Slot(segment=f"{os.getpid()}.{file}.{SECRET.hex()}", offset=offset, generation=cells[0])
        for at in (offset, data):
            views = reader.read(msgspec.structs.replace(slot, offset=at), sizes)
            assert views is None or [len(view) for view in views] == sizes
        reader.holds(slot)
    finally:
        reader.close()
        os.close(file)


@pytest.mark.parametrize("size", [1, HEADER.size - 1, HEADER.size])
def test_a_file_that_is_too_small_for_a_header_is_no_segment(reader: SegmentReader, size: int) -> None:
    file = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        assert not reader.can_open(f"{os.getpid()}.{file}.{bytes(TOKEN_BYTES).hex()}")
    finally:
        os.close(file)


def test_a_segment_that_could_not_be_opened_is_not_tried_at_every_request(
    writer: SegmentWriter, reader: SegmentReader
) -> None:
    slot = put(writer)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        assert not reader.can_open(slot.segment)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert not reader.can_open(slot.segment)  # it could be, by now
    assert SegmentReader().can_open(slot.segment)


def test_without_descriptors_or_memory_nothing_is_put_and_nothing_leaks() -> None:
    files = open_files()
    no_files, no_memory = SegmentWriter(16 * MIB), SegmentWriter(32 * MIB)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        assert no_files.put([b"x"]) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limit[1]))
    try:
        assert no_memory.put([b"x"]) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert no_memory.bytes_used == no_files.bytes_used == 0
    assert open_files() == files


def test_idle_memory_is_given_back(writer: SegmentWriter) -> None:
    slots = [writer.put([bytes(SLAB_BYTES)]) for _ in range(4)]
    file = int(writer.name.split(".")[1])
    full = os.fstat(file).st_blocks
    for slot in slots:
        assert slot is not None
        writer.free(slot)
    writer.trim()
    assert os.fstat(file).st_blocks == full
    writer.trim()
    assert os.fstat(file).st_blocks < full / 3
    again = [writer.put([bytes([7]) * SLAB_BYTES]) for _ in range(4)]
    assert None not in again
    assert os.fstat(file).st_blocks == full


OTHER = """
import sys
from mesh.process.segments import SegmentWriter
writer = SegmentWriter(16 << 20)
slot = writer.put([b"abcde", b"", b"x" * 70_000])
print(slot.segment, slot.offset, slot.generation, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Slot]]:
    """A process that has put tensors of SIZES into a slot of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        segment, offset, generation = process.stdout.readline().split()
        try:
            yield process, Slot(segment=segment, offset=int(offset), generation=int(generation))
        finally:
            process.kill()


def test_another_process_is_read_and_nothing_is_left_of_it_once_it_was_killed(reader: SegmentReader) -> None:
    before = mapped_bytes(MEMFD_NAME)  # of other tests in this process
    with another_process() as (process, slot):
        assert read(reader, slot) == [b"abcde", b"", b"x" * 70_000]
        views = reader.read(slot, SIZES)
        process.kill()
        process.wait()
        assert views is not None
        assert bytes(views[2]) == b"x" * 70_000  # who looks at it keeps it
        assert mapped_bytes(MEMFD_NAME).keys() > before.keys()
        del views
        reader.sweep()
        gc.collect()
        assert mapped_bytes(MEMFD_NAME).keys() <= before.keys()
        assert not reader.holds(slot)
        assert reader.read(slot, SIZES) is None


def test_many_segments_are_not_all_kept_open(monkeypatch: pytest.MonkeyPatch, reader: SegmentReader) -> None:
    monkeypatch.setattr("mesh.process.segments.MAPPED_MAX", 3)
    others = mapped_bytes(MEMFD_NAME).keys()  # of other tests in this process
    writers = [SegmentWriter(16 * MIB) for _ in range(5)]
    slots = [put(writer, seed) for seed, writer in enumerate(writers)]
    assert len(mapped_bytes(MEMFD_NAME).keys() - others) == 5
    files = len(open_files())
    for _ in range(2):
        for seed, slot in enumerate(slots):
            assert read(reader, slot) == tensors(seed)
    assert len(open_files()) <= files + 3
    assert len(mapped_bytes(MEMFD_NAME).keys() - others) == 5
    for writer in writers:
        writer.close()


def test_a_child_without_exec_does_not_see_the_memory(writer: SegmentWriter, reader: SegmentReader) -> None:
    others = mapped_bytes(MEMFD_NAME).keys()  # of other tests in this process
    slot = put(writer)
    assert read(reader, slot) == tensors(1)
    mapped = mapped_bytes(MEMFD_NAME).keys() - others
    assert len(mapped) == 1
    child = os.fork()
    if not child:
        code = 2
        with contextlib.suppress(Exception):
            code = 1 if mapped_bytes(MEMFD_NAME).keys() & mapped else 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_program_that_is_started_inherits_the_segment(writer: SegmentWriter) -> None:
    put(writer)
    code = "import os\nfrom tests.memory import open_files\nprint(open_files())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False
    ).stdout
    assert "pipe:" in found
    assert MEMFD_NAME not in found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_read_the_segment(writer: SegmentWriter) -> None:
    slot = put(writer)
    child = os.fork()
    if not child:
        os.setgid(65534)
        os.setuid(65534)
        os._exit(1 if SegmentReader().can_open(slot.segment) else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_emptied_place_reads_as_nothing(writer: SegmentWriter, reader: SegmentReader) -> None:
    """Who looks at a slot whose memory was given back meanwhile sees zeros, and that the slot is gone."""
    slots = [writer.put([b"x" * SLAB_BYTES]) for _ in range(2)]
    last: Any = slots[-1]
    views = reader.read(last, [SLAB_BYTES])
    assert views is not None
    for slot in slots:
        assert slot is not None
        writer.free(slot)
    writer.trim()
    writer.trim()
    assert bytes(views[0][: mmap.PAGESIZE]) == bytes(mmap.PAGESIZE)
    assert not reader.holds(last)
