"""The memory that a container's device shares with its code: slots with the inputs and outputs of one batch each."""

import mmap
import os

from gpu_worker.container.layouts import SLOTS, SlotLayout
from gpu_worker.core.jobs import Job
from mesh import wire
from mesh.codes import ActionCode
from mesh.tensors import byte_count

Refusal = tuple[ActionCode, str]


class SharedSlots:
    """Slots of equal size. A job has at most one, whose offset is `job.slot`."""

    def __init__(self, spec: wire.ModelSpec, layout: SlotLayout) -> None:
        self._layout = layout
        self.fd = os.memfd_create("gearmesh-container", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, layout.total_bytes)
        self._memory = mmap.mmap(self.fd, layout.total_bytes)
        self._bytes = memoryview(self._memory)
        self._free = [i * layout.slot_bytes for i in range(SLOTS)]
        self._in_bytes = [byte_count(t.dtype, t.shape[1:]) for t in spec.inputs]
        self._out_bytes = [byte_count(t.dtype, t.shape[1:]) for t in spec.outputs]

    def take(self, job: Job) -> bool:
        """The job has a slot. Returns False if none is free."""
        if not self._free:
            return False
        job.slot = self._free.pop()
        return True

    def fill(self, job: Job) -> Refusal | None:
        """The inputs of all parts are in the job's slot, one input after the other. Returns why not; None: they are."""
        fault = self._fill(job)
        return (ActionCode.BAD_INPUT, fault) if fault else None

    def order(self, job: Job) -> tuple[int, int]:
        """Returns where the job's slot begins, and how many bytes describe its batch there: none."""
        return job.slot, 0

    def ended(self, job: Job, described: tuple[int, int]) -> None:
        """Nothing is known of the outputs that was not before: they lie where the layout says."""

    def copy_outputs(self, job: Job) -> Refusal | None:
        """`job.outputs` holds copies of the batch's outputs; nothing is wrong with them."""
        action = job.action
        assert isinstance(action, wire.Infer)
        for placed, size in zip(self._layout.outputs, self._out_bytes, strict=True):
            at = job.slot + placed["at"]
            job.outputs.append(memoryview(bytes(self._bytes[at : at + size * action.batch])))
        return None

    def give(self, job: Job) -> None:
        """The job's slot, if it has one, is free."""
        slot, job.slot = job.slot, None
        if slot is not None:
            self._free.append(slot)

    def close(self) -> None:
        """The descriptor is closed; what is mapped stays until it is used no more."""
        os.close(self.fd)

    def _fill(self, job: Job) -> str:
        action = job.action
        assert isinstance(action, wire.Infer)
        for i, (placed, size) in enumerate(zip(self._layout.inputs, self._in_bytes, strict=True)):
            at = job.slot + placed["at"]
            end = at + size * action.batch
            for part, tensors in zip(action.parts, job.tensors, strict=True):
                if len(tensors) != len(self._in_bytes):
                    return f"{len(tensors)} inputs came, the function takes {len(self._in_bytes)}"
                piece = tensors[i]
                if len(piece) != size * part.rows:
                    return f"input {i} has {len(piece)} bytes; {part.rows} rows take {size * part.rows}"
                begin, at = at, at + len(piece)
                if at > end:
                    return f"input {i} has more bytes than the batch's rows"
                self._bytes[begin:at] = piece
            if at != end:
                return f"input {i} has fewer bytes than the batch's rows"
        return ""
