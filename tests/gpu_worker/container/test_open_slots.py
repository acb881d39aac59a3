"""Slots for batches of unequal sizes: what is laid into one is what the code's process reads there."""

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.container.child.open_batches import OpenBatch
from gpu_worker.container.child.splitting import split
from gpu_worker.container.layouts import SLOTS, lay_out
from gpu_worker.container.open_slots import OpenSlots
from gpu_worker.container.promises import model_spec
from gpu_worker.container.specs import ContainerOptions, parse_declared, parse_tensor
from gpu_worker.core.jobs import Job
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import joint
from mesh.strings import pack
from tests.gpu_worker.container.container_builders import answered, travelling
from tests.messages import names

OPTIONS = ContainerOptions(
    model="m", predict="mine:f", python="python", declared=parse_declared(["h=9", "w=9"], ["image=7"])
)
INPUTS = ["image:int16:-1,h,w,2", "mask:bool:-1,w", "words:string:-1,h", "n:int64:-1"]
OUTPUTS = ["image:int16:-1,h,w,2", "words:string:-1,h", "n:int64:-1"]
SPEC = model_spec(OPTIONS, [parse_tensor(text, "") for text in INPUTS], [parse_tensor(text, "") for text in OUTPUTS])
LAYOUT = replace(lay_out(SPEC), slot_bytes=1 << 16)


class Memory:
    """Slots, and the memory as the code's process sees it."""

    def __init__(self, slot_bytes: int) -> None:
        layout = replace(LAYOUT, slot_bytes=slot_bytes)
        self.slots = OpenSlots(SPEC, layout)
        self.seen = mmap.mmap(os.dup(self.slots.fd), layout.total_bytes)
        self.room = slot_bytes

    def slot(self, job: Job) -> memoryview:
        at, _ = self.slots.order(job)
        return memoryview(self.seen)[at : at + self.room]

    def batch(self, job: Job) -> OpenBatch:
        _, described = self.slots.order(job)
        return OpenBatch(self.slot(job), described, list(LAYOUT.inputs), list(LAYOUT.dims))


@pytest.fixture
def memory() -> Iterator[Callable[[int], Memory]]:
    made = []

    def make(slot_bytes: int = 1 << 16) -> Memory:
        made.append(Memory(slot_bytes))
        return made[-1]

    yield make
    for one in made:
        one.slots.close()


def request(rng: np.random.Generator, rows: int, h: int, w: int) -> dict[str, Any]:
    """Inputs of one request."""
    words = np.empty((rows, h), object)
    words[:] = [["\u00e9" * int(rng.integers(0, 9)) for _ in range(h)] for _ in range(rows)]
    return {
        "image": rng.integers(-99, 99, (rows, h, w, 2)).astype(np.int16),
        "mask": np.ones((rows, w), bool),
        "words": words,
        "n": rng.integers(0, 9, rows),
    }


def job_of(*requests: dict[str, Any]) -> Job:
    parts = tuple(
        wire.Part(frontend="f", request=i, attempt=0, rows=len(one["n"]), predicted_s=0.0,
                  extents=one["image"].shape[1:3])
        for i, one in enumerate(requests)
    )  # fmt: skip
    action = wire.Infer(
        parts=parts, action=1, ref="m:1", earliest_s=0.0, latest_s=1e9, expected_s=0.01,
        batch=sum(part.rows for part in parts), extents=joint(part.extents for part in parts),
    )  # fmt: skip
    tensors = [[travelling(one[tensor.name], tensor.dtype) for tensor in SPEC.inputs] for one in requests]
    return Job(action, 0.0, 1, tensors=tensors)


SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 1 << 30))
def test_inputs_are_read_filled_up_and_what_is_returned_comes_back_cut(
    sizes: list[tuple[int, int, int]], seed: int
) -> None:
    memory = Memory(1 << 16)
    rng = np.random.default_rng(seed)
    requests = [request(rng, *size) for size in sizes]
    job = job_of(*requests)
    assert memory.slots.take(job)
    assert memory.slots.fill(job) is None
    batch = memory.batch(job)
    image, mask, words, numbers = batch.inputs()
    h, w = joint(size[1:] for size in sizes)
    assert image.shape == (sum(size[0] for size in sizes), h, w, 2)
    row = 0
    for one, (rows, own_h, own_w) in zip(requests, sizes, strict=True):
        mine = slice(row, row + rows)
        np.testing.assert_array_equal(image[mine, :own_h, :own_w], one["image"])
        assert (image[mine, own_h:] == 7).all()
        assert (image[mine, :, own_w:] == 7).all()
        np.testing.assert_array_equal(mask[mine], np.arange(w) < own_w * np.ones((rows, 1)))
        np.testing.assert_array_equal(words[mine, :own_h], one["words"])
        assert (words[mine, own_h:] == "").all()
        np.testing.assert_array_equal(numbers[mine], one["n"])
        row += rows
    outputs = list(LAYOUT.outputs)
    result = {"image": image, "words": words, "n": numbers}
    memory.slots.ended(job, batch.write(outputs, split(result, outputs, batch.dims, batch.parts, batch.extents)))
    assert memory.slots.copy_outputs(job) is None
    assert job.cut is not None
    for one, portion in zip(requests, job.cut.portions, strict=True):
        answer = wire.Answer(request=0, attempt=0, rows=len(one["n"]), predicted_s=0.0, shapes=portion.shapes,
                             inline=portion.tensors)  # fmt: skip
        found = answered(SPEC, answer, [])
        for name in found:
            np.testing.assert_array_equal(found[name], one[name])
    memory.slots.give(job)
    memory.slots.close()


def test_a_batch_that_has_no_room_is_refused_with_what_it_takes(memory: Callable[[int], Memory]) -> None:
    slots = memory(4096).slots
    job = job_of(request(np.random.default_rng(0), 3, 9, 9), request(np.random.default_rng(0), 9, 9, 9))
    assert slots.take(job)
    refusal = slots.fill(job)
    assert refusal is not None
    assert refusal[0] == ActionCode.NO_MEMORY
    slots.give(job)
    small = job_of(request(np.random.default_rng(0), 1, 1, 1))
    assert slots.take(small)
    assert slots.fill(small) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(), ("request 1", 3, 4)),
        (lambda tensors: tensors.__setitem__(0, tensors[0][:-1]), ("request 1", "image")),
        (lambda tensors: tensors.__setitem__(1, b""), ("request 1", "mask")),
        (lambda tensors: tensors.__setitem__(3, tensors[3] * 2), ("request 1", "n")),
    ],
)
def test_inputs_of_other_sizes_than_their_request_s_are_refused(
    memory: Callable[[int], Memory], change: Callable[[list[bytes]], object], named: tuple[str | int, ...]
) -> None:
    slots = memory(1 << 16).slots
    job = job_of(*(request(np.random.default_rng(i), 1, 3, 4) for i in range(2)))
    change(job.tensors[1])  # type: ignore[arg-type]
    assert slots.take(job)
    refusal = slots.fill(job)
    assert refusal is not None
    assert refusal[0] == ActionCode.BAD_INPUT
    assert names(refusal[1], *named)


@pytest.mark.parametrize("data", [b"", pack([b"a"]), pack([b"a", b"b", b"c"]), b"\xff" * 8, pack([b"\xff", b""])])
def test_strings_that_are_not_those_of_the_rows_are_found_by_the_code_s_process(
    memory: Callable[[int], Memory], data: bytes
) -> None:
    made = memory(1 << 16)
    job = job_of(request(np.random.default_rng(0), 1, 2, 2))
    job.tensors[0][2] = data  # type: ignore[index]
    assert made.slots.take(job)
    assert made.slots.fill(job) is None
    with pytest.raises(Exception, match="words") as raised:
        made.batch(job).inputs()
    assert type(raised.value).__name__ == "WrongInput"


def test_there_are_as_many_slots_as_batches_that_may_be_on_their_way(memory: Callable[[int], Memory]) -> None:
    slots = memory(4096).slots
    jobs = [job_of(request(np.random.default_rng(0), 1, 1, 1)) for _ in range(SLOTS + 1)]
    assert [slots.take(job) for job in jobs] == [True] * SLOTS + [False]
    begins = [slots.order(job)[0] for job in jobs[:SLOTS]]
    assert all(abs(one - other) >= 4096 for one, other in itertools.combinations(begins, 2))
    slots.give(jobs[0])
    assert slots.take(jobs[-1])
