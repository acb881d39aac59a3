"""Large inputs of open requests: they stay here, and workers read them from shared memory, or fetch them. Shell."""

from collections.abc import Iterable

from frontend.core.open_calls import CallPart
from frontend.core.shares import fits
from mesh import digests, wire
from mesh.process.segments import SegmentWriter


class LargeInputs:
    """Writes the inputs of each part into a slot, where there is room, and gives it back when the part has ended.

    Of the memory one model has no more than a share, so that there is always room for others. The tensors themselves
    are kept as well, as long as their part is open: for workers on other machines, and for what is submitted anew.
    """

    def __init__(self, memory: SegmentWriter, host: str) -> None:
        """`host`: this machine, as members name theirs."""
        self._memory = memory
        self._host = host
        self._near = False  # some worker is on this machine
        self._held: dict[str, int] = {}  # {ref: bytes of its open parts in slots}, without those that have none
        self.crowded = 0  # parts that got no slot, though some worker is on this machine, and memory is shared

    @property
    def bytes_used(self) -> int:
        """Of the shared memory."""
        return self._memory.bytes_used

    def table_changed(self, members: Iterable[wire.Member]) -> None:
        """These are the members of the mesh. Where no worker could read it, nothing is written into shared memory."""
        self._near = any(member.role == "gpu_worker" and member.host == self._host for member in members)

    def keep(self, part: CallPart) -> wire.Kept:
        """What the part's submissions say of its inputs. The same for all of them, so that it is written once."""
        if part.kept is None:
            tensors = part.tensors
            part.kept = wire.Kept(
                sizes=tuple(map(len, tensors)),
                slot=self._write(part) if self._near else None,
                whole=digests.whole(tensors),
                sample=digests.sample(tensors),
            )
        return part.kept

    def _write(self, part: CallPart) -> wire.Slot | None:
        if not self._memory.bytes_max:
            return None
        ref = part.call.ref
        size = sum(map(len, part.tensors))
        held = self._held.get(ref, 0)
        slot = None
        if fits(held, size, self._memory.bytes_used, self._memory.bytes_max):
            slot = self._memory.put(part.tensors)
        if slot is None:
            self.crowded += 1
            return None
        self._held[ref] = held + size
        return slot

    def free(self, parts: list[CallPart]) -> None:
        """These parts have ended, and leave the list: who still reads their slots will find that out."""
        for part in parts:
            kept, part.kept = part.kept, None
            if kept is None or kept.slot is None:
                continue
            self._memory.free(kept.slot)
            ref = part.call.ref
            held = self._held[ref] - sum(kept.sizes)
            if held:
                self._held[ref] = held
            else:
                del self._held[ref]
        parts.clear()

    def trim(self) -> None:
        """Memory that is not in use is given back. To be called now and then."""
        self._memory.trim()

    def close(self) -> None:
        """The shared memory is given up."""
        self._memory.close()
