"""What a device allocates at the start, and the ring of buffers for inputs and outputs."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gpu_worker.core.cutting import Cut, cut_outputs
from gpu_worker.core.jobs import Job
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.driver import Driver, MemoryFull, Pinned
from gpu_worker.devices.cuda.plans import MIB, SLOT_BYTES_MAX, BatchLayout, Room, lay_out
from gpu_worker.devices.cuda.transfer.copies import BUFFERS
from gpu_worker.devices.execution.open_rows import OpenInputs
from gpu_worker.devices.execution.rows import pad
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.sizes import most_of

SLOTS = 12  # INPUTs ahead, EXECs and OUTPUTs in flight: the lanes hold no more at a time
WORD = torch.int64
ROW_WORDS = 32  # rows of the page table are aligned to this: Triton recompiles for an unaligned address


def capacity_faults(package: Package, room: Room) -> list[str]:
    """Returns what of the package is too large for a device with this room, each with the figure and the limit."""
    faults = []
    if package.image_bytes > room.buffer_bytes:
        faults.append(
            f"its weights take {package.image_bytes / MIB:.1f} MiB; the execution buffer is "
            f"{room.buffer_bytes // MIB} MiB (GEARMESH_WINDOW_MB)"
        )
    faults += _shape_faults(package.spec) or _batch_faults(package.spec)
    pages = package.pages(room.page_bytes)
    if pages > room.pages:
        faults.append(f"its weights take {pages} pages; the arena has {room.pages} (GEARMESH_ARENA_MB)")
    return faults


def _shape_faults(spec: wire.ModelSpec) -> list[str]:
    """Returns why the shapes of a model's batches cannot be fixed beforehand, as a graph needs them."""
    faults = []
    if spec.exact and spec.dims:
        faults.append("it is exact, and this device pads its inputs to the shapes of its graphs: serve it on a cpu")
    for tensor in spec.outputs:
        if tensor.owner or any(tensor.name == other.owner for other in spec.outputs):
            faults.append(f"output {tensor.name}: its extent depends on what is found: serve it on a cpu")
    return faults


def _batch_faults(spec: wire.ModelSpec) -> list[str]:
    """Returns that a batch is too large: the largest, or one row of the greatest extents where some are open."""
    rows = 1 if spec.dims else spec.batch_max
    batch_bytes = lay_out(spec, rows, most_of(spec)).end
    if batch_bytes <= SLOT_BYTES_MAX:
        return []
    mend = "lower the greatest extents" if spec.dims else "lower batch_max"
    return [
        f"inputs and outputs of {rows} rows take {batch_bytes / MIB:.1f} MiB; a buffer holds "
        f"{SLOT_BYTES_MAX // MIB} MiB: {mend} in model.toml"
    ]


class Memory:
    """Arena, execution buffer and page table of one device. Raises: DeviceError."""

    def __init__(self, driver: Driver, room: Room) -> None:
        self.room = room
        row = -(-room.buffer_pages // ROW_WORDS) * ROW_WORDS
        table_bytes = room.pages * row * WORD.itemsize
        try:
            arena = driver.allocate(room.arena_bytes)
            self.execution_buffer = driver.allocate(room.buffer_bytes)
            tables = driver.allocate(table_bytes)
            self._host_tables = driver.pin(table_bytes)
        except (MemoryFull, MemoryError) as error:
            raise DeviceError(
                f"{driver.name}: an arena of {room.arena_bytes // MIB} MiB and an execution buffer of "
                f"{room.buffer_bytes // MIB} MiB cannot be allocated: {error}; lower GEARMESH_ARENA_MB"
            ) from error
        self.arena = arena
        self.arena_pages = arena.view(WORD).view(room.pages, -1)
        self.buffer_pages = self.execution_buffer.view(WORD).view(room.buffer_pages, -1)
        self.tables = tables.view(WORD).view(room.pages, row)
        self.host_tables = self._host_tables.tensor.view(WORD).view(room.pages, row)

    def row(self, pages: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the row of the page table for these pages, `[n]` int64: (on the device, pinned and filled in).

        The row is that of the first page: as long as a model holds that page, the row belongs to it.
        """
        there, here = self.tables[pages[0], : len(pages)], self.host_tables[pages[0], : len(pages)]
        here.copy_(torch.tensor(pages, dtype=WORD))
        return there, here


class Staging:
    """Pinned buffers of one size for pieces from disk. Raises: MemoryError."""

    def __init__(self, driver: Driver, size: int, count: int = BUFFERS) -> None:
        self._pinned = driver.pin(count * size)
        self.buffers = [self._pinned.tensor[i * size : (i + 1) * size] for i in range(count)]
        self.bytes = [buffer.numpy() for buffer in self.buffers]  # the same buffers as numpy arrays, for reading files


@dataclass(slots=True, eq=False)
class InferSlot:
    """Room for one INFER's inputs and outputs, in pinned memory and on the device."""

    ring: "Ring"
    pinned: Pinned
    here: torch.Tensor  # uint8, of `pinned`
    there: torch.Tensor  # uint8, on the device


@dataclass(slots=True, eq=False)
class Ring:
    """Slots of one size. Taken and given back on the loop's thread; replaced as a whole by a larger ring."""

    slot_bytes: int
    free: deque[InferSlot] = field(default_factory=deque)

    @classmethod
    def allocate(cls, driver: Driver, slot_bytes: int, count: int = SLOTS) -> "Ring":
        """Returns a ring whose slots are all free. Raises: MemoryFull, MemoryError."""
        ring = cls(slot_bytes)
        for _ in range(count):
            pinned = driver.pin(slot_bytes)
            ring.free.append(InferSlot(ring, pinned, pinned.tensor, driver.allocate(slot_bytes)))
        return ring

    def take(self) -> InferSlot | None:
        """Returns a slot; None if all are in use."""
        return self.free.popleft() if self.free else None

    def give(self, slot: InferSlot) -> None:
        """The slot is free again; one of a replaced ring is dropped."""
        if slot.ring is self:
            self.free.append(slot)


class WrongBytes(ValueError):
    """An input does not have the bytes that its rows take."""


def fill(
    slot: InferSlot, layout: BatchLayout, job: Job, padding: Sequence[Bytes], inputs: OpenInputs | None = None
) -> None:
    """The slot's pinned part holds the job's inputs, and `padding` (one row of each input) up to the captured size.

    `inputs`: of a version whose rows may differ in size; they fill up the layout themselves. Raises: WrongBytes.
    """
    assert isinstance(job.action, wire.Infer)
    target = slot.here.numpy()
    if inputs is not None:
        fault = inputs.fill(target, layout.inputs, layout.extents, job.action.parts, job.tensors)
        if fault:
            raise WrongBytes(fault)
        return
    for i, place in enumerate(layout.inputs):
        at = place.at
        for part, tensors in zip(job.action.parts, job.tensors, strict=True):
            if len(tensors) != len(layout.inputs):
                raise WrongBytes(f"{len(tensors)} inputs came, the model takes {len(layout.inputs)}")
            piece = np.frombuffer(tensors[i], np.uint8)
            if len(piece) != place.row_bytes * part.rows:
                raise WrongBytes(
                    f"input {i} has {len(piece)} bytes; {part.rows} rows take {place.row_bytes * part.rows}"
                )
            target[at : at + len(piece)] = piece
            at += len(piece)
        pad(target[at : place.at + place.size], padding[i])


def outputs_of(slot: InferSlot, layout: BatchLayout, rows: int) -> list[memoryview]:
    """Returns copies of the first rows of each output: the slot will soon be reused."""
    source = slot.here.numpy()
    return [memoryview(source[place.at : place.at + place.row_bytes * rows].tobytes()) for place in layout.outputs]


def portions_of(slot: InferSlot, layout: BatchLayout, action: wire.Infer, spec: wire.ModelSpec) -> Cut:
    """Returns what each part gets, copied: the slot will soon be reused. Raises: Indivisible."""
    source = memoryview(slot.here.numpy())  # type: ignore[arg-type]
    outputs = [source[place.at : place.at + place.row_bytes * action.batch] for place in layout.outputs]
    shapes = [(action.batch, *place.shape[1:]) for place in layout.outputs]
    return cut_outputs(spec, action, outputs, shapes, computed=layout.extents, lent=True)
