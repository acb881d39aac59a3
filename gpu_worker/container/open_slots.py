"""Slots of shared memory for batches whose requests have sizes of their own.

A request's tensors lie in the slot as they were sent; the code's process fills them up, and cuts the outputs. So a slot
holds what was sent and what is answered, never what was filled up, and a long request costs no room for short ones.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gpu_worker.container.child.open_batches import aligned
from gpu_worker.container.layouts import SLOTS, SlotLayout
from gpu_worker.container.slots import Refusal
from gpu_worker.core.cutting import Cut, Indivisible, Portion
from gpu_worker.core.jobs import Job
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import row_shape
from mesh.tensors import VARIABLE, byte_count

HELD_BYTES_MAX = 64 << 20  # of a slot: what lies beyond is given back to the system when the slot is free
Placed = tuple[int, int, tuple[int, ...]]  # where one request's output is in the slot, its bytes, its shape
PLACES = msgspec.json.Decoder(list[list[Placed]])  # of each part, its outputs
ENCODER = msgspec.json.Encoder()


@dataclass(slots=True)
class OpenSlot:
    """One slot, while a job has it."""

    at: int  # its offset in the memory
    described: int = 0  # bytes at its begin that describe the batch
    used: int = 0  # bytes that this and the inputs take
    outputs: tuple[int, int] = (0, 0)  # where its outputs are described, and in how many bytes


class OpenSlots:
    """Slots of equal size. A job has at most one, an OpenSlot, in `job.slot`."""

    def __init__(self, spec: wire.ModelSpec, layout: SlotLayout) -> None:
        self._spec = spec
        self._room = layout.slot_bytes
        self.fd = os.memfd_create("gearmesh-container", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, layout.total_bytes)
        self._memory = mmap.mmap(self.fd, layout.total_bytes)
        self._bytes = memoryview(self._memory)
        self._free = [i * layout.slot_bytes for i in range(SLOTS)]

    def take(self, job: Job) -> bool:
        """The job has a slot. Returns False if none is free."""
        if not self._free:
            return False
        job.slot = OpenSlot(self._free.pop())
        return True

    def fill(self, job: Job) -> Refusal | None:
        """The inputs of all parts are in the job's slot, as they were sent. Returns why they cannot be; None: they are.

        The lanes have seen to it that the extents are the model's, and none greater than the batch's.
        """
        action = job.action
        assert isinstance(action, wire.Infer)
        faults = (self._fault(part, tensors) for part, tensors in zip(action.parts, job.tensors, strict=True))
        fault = next(filter(None, faults), "")
        rows = sum(part.rows for part in action.parts)
        if fault or rows != action.batch:
            return ActionCode.BAD_INPUT, fault or f"the parts have {rows} rows, and the batch {action.batch}"
        at, placed = 0, []
        for i in range(len(self._spec.inputs)):
            sizes = [len(tensors[i]) for tensors in job.tensors]
            placed.append((at, sizes))
            at = aligned(at + sum(sizes))
        about = {
            "parts": [(part.rows, part.extents) for part in action.parts],
            "extents": action.extents, "inputs": placed, "outputs_at": at,
        }  # fmt: skip
        text = ENCODER.encode(about)
        base = aligned(len(text))
        if base + at > self._room:
            return ActionCode.NO_MEMORY, (
                f"the inputs of this batch take {base + at >> 20} MiB; a batch has room for {self._room >> 20} MiB"
            )
        job.slot.described, job.slot.used = len(text), base + at
        begin = job.slot.at
        self._bytes[begin : begin + len(text)] = text
        for i, (first, sizes) in enumerate(placed):
            end = begin + base + first
            for tensors, size in zip(job.tensors, sizes, strict=True):
                self._bytes[end : end + size] = tensors[i]
                end += size
        return None

    def order(self, job: Job) -> tuple[int, int]:
        """Returns where the job's slot begins, and how many bytes describe its batch there."""
        return job.slot.at, job.slot.described

    def ended(self, job: Job, described: tuple[int, int]) -> None:
        """The code's process says where in the slot the outputs are described, and in how many bytes."""
        job.slot.outputs = described

    def copy_outputs(self, job: Job) -> Refusal | None:
        """`job.cut` holds copies of what each part gets. Returns why that cannot be; None: it is so."""
        action = job.action
        assert isinstance(action, wire.Infer)
        try:
            job.cut = self._cut(job.slot, action.parts)
        except Indivisible as error:
            return error.code, str(error)
        return None

    def give(self, job: Job) -> None:
        """The job's slot, if it has one, is free. Of one that has held much, the memory is given back."""
        slot, job.slot = job.slot, None
        if slot is None:
            return
        if max(slot.used, sum(slot.outputs)) > HELD_BYTES_MAX:
            self._memory.madvise(mmap.MADV_REMOVE, slot.at, self._room)
        self._free.append(slot.at)

    def close(self) -> None:
        """The descriptor is closed; what is mapped stays until it is used no more."""
        os.close(self.fd)

    def _fault(self, part: wire.Part, tensors: Sequence[wire.Buffer]) -> str:
        """Why these are no inputs of this part; empty if they are."""
        inputs = self._spec.inputs
        if len(tensors) != len(inputs):
            return f"request {part.request}: {len(tensors)} inputs came, the function takes {len(inputs)}"
        for tensor, piece in zip(inputs, tensors, strict=True):
            shape = (part.rows, *row_shape(tensor, self._spec.dims, part.extents))
            if tensor.dtype not in VARIABLE and len(piece) != byte_count(tensor.dtype, shape):
                return (
                    f"request {part.request}: input {tensor.name} has {len(piece)} bytes; {list(shape)} take "
                    f"{byte_count(tensor.dtype, shape)}"
                )
        return ""

    def _cut(self, slot: OpenSlot, parts: Sequence[wire.Part]) -> Cut:
        """Raises: Indivisible: the code may have written there, too."""
        at, size = slot.outputs
        if not 0 <= at <= at + size <= self._room:
            raise Indivisible(f"outputs are described at {at}, in {size} bytes; a slot has {self._room}")
        try:
            described = PLACES.decode(self._bytes[slot.at + at : slot.at + at + size])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Indivisible(f"what is said of the outputs cannot be read: {error}") from error
        if [len(places) for places in described] != [len(self._spec.outputs)] * len(parts):
            raise Indivisible(f"outputs of {len(described)} requests are described; {len(parts)} were asked")
        shares = [self._share(slot, part, places) for part, places in zip(parts, described, strict=True)]
        return Cut(tuple(shares), sum(len(tensor) for share in shares for tensor in share.tensors))

    def _share(self, slot: OpenSlot, part: wire.Part, places: list[Placed]) -> Portion:
        tensors = []
        told = {tensor.owner for tensor in self._spec.outputs}
        for tensor, (at, size, shape) in zip(self._spec.outputs, places, strict=True):
            own = [-1 if tensor.owner or tensor.name in told else part.rows]
            own += row_shape(tensor, self._spec.dims, part.extents)
            if tensor.count:
                own[1] = -1
            fits = len(shape) == len(own) and all(want in (-1, has) for want, has in zip(own, shape, strict=True))
            if not fits or min(shape, default=0) < 0 or not 0 <= at <= at + size <= self._room:
                raise Indivisible(f"output {tensor.name} is described as {list(shape)} at {at}; {own} are promised")
            if tensor.dtype not in VARIABLE and size != byte_count(tensor.dtype, shape):
                raise Indivisible(f"output {tensor.name} is described with {size} bytes for {list(shape)}")
            tensors.append(memoryview(bytes(self._bytes[slot.at + at : slot.at + at + size])))
        return Portion(tuple(tensors), tuple(shape for _, _, shape in places))
