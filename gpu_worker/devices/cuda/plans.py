"""What goes where and when: places in buffers, contents of the execution buffer, sizes to allocate.

Pure. Sizes are bytes and instants are seconds of one clock, unless a name says otherwise.
"""

from dataclasses import dataclass

from gpu_worker.core.layouts import TensorPlace, places
from gpu_worker.devices.base import DeviceError
from mesh import wire
from mesh.sizes import Extents

MIB = 1 << 20
SLOT_BYTES_MAX = 256 * MIB  # inputs and outputs of one batch


# -- inputs and outputs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Inputs, then outputs, of one batch size, each at an aligned place of one buffer."""

    inputs: tuple[TensorPlace, ...]
    outputs: tuple[TensorPlace, ...]
    inputs_end: int
    end: int
    extents: Extents = ()  # in the open dimensions

    @property
    def outputs_at(self) -> int:
        """Offset of the first output."""
        return self.outputs[0].at


def lay_out(spec: wire.ModelSpec, size: int, extents: Extents = ()) -> BatchLayout:
    """Returns the places for a batch of this size, with these extents in the open dimensions."""
    inputs, end = places(spec.inputs, spec.dims, size, extents)
    outputs, last = places(spec.outputs, spec.dims, size, extents, end)
    return BatchLayout(inputs, outputs, end, last, extents)


# -- EXEC -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ExecutionBuffer:
    """Whose weights the execution buffer holds, after everything issued so far.

    The weights of a version never change once it is prepared, so the number of its preparation identifies them: the
    buffer may still hold a model whose pages were given to others long ago.
    """

    holds: int | None = None  # number of a preparation

    def switch_to(self, preparation: int) -> bool:
        """The buffer holds these weights once what is issued now has run.

        Returns True if they must be gathered first.
        """
        gather = self.holds != preparation
        self.holds = preparation
        return gather

    def invalidate_if(self, preparation: int) -> None:
        """These weights must be gathered again, if the buffer holds them."""
        if self.holds == preparation:
            self.holds = None

    def invalidate(self) -> None:
        """The contents of the buffer are unknown from now on."""
        self.holds = None


@dataclass(slots=True)
class StreamForecast:
    """Predicts when a stream will be free: what was issued runs one after the other."""

    _free_s: float = 0.0
    _running: int = 0

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return self._running > 0

    def start_s(self, now: float) -> float:
        """Returns when something issued now would start."""
        return max(now, self._free_s) if self._running else now

    def issued(self, now: float, expected_s: float) -> None:
        """Something was issued that is expected to take `expected_s`."""
        self._free_s = self.start_s(now) + expected_s
        self._running += 1

    def ended(self, now: float) -> None:
        """The oldest work has ended, early or late: the start of the others shifts accordingly."""
        self._running -= 1
        if not self._running:
            self._free_s = now
        else:
            self._free_s = max(self._free_s, now)


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes of what is allocated at the start."""

    page_bytes: int
    pages: int  # of the arena
    buffer_pages: int  # of the execution buffer

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena."""
        return self.pages * self.page_bytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the execution buffer."""
        return self.buffer_pages * self.page_bytes


RESERVE_BYTES = 3 << 30  # graphs, activations, buffers, modules. Source: sum of their estimates, unproven
RESERVE_SHARE = 0.06


def make_room(name: str, *, free: int, total: int, page_bytes: int, arena_bytes: int, buffer_bytes: int) -> Room:
    """Returns what to allocate on a device with so much free memory; `arena_bytes` 0: everything that is left.

    Room for a second execution buffer stays free: preparing a model needs its weights on the device once more. Raises:
    DeviceError.
    """
    buffer_pages = -(-buffer_bytes // page_bytes)
    rest = 2 * buffer_pages * page_bytes + max(RESERVE_BYTES, int(total * RESERVE_SHARE))
    pages = arena_bytes // page_bytes if arena_bytes else (free - rest) // page_bytes
    wanted = max(pages, 1) * page_bytes + buffer_pages * page_bytes
    if pages < 1 and arena_bytes:
        raise DeviceError(
            f"{name}: an arena of {arena_bytes // MIB} MiB holds no page of {page_bytes // MIB} MiB: raise "
            "GEARMESH_ARENA_MB or lower GEARMESH_PAGE_MB"
        )
    if pages < 1 or wanted > free:
        raise DeviceError(
            f"{name}: {free // MIB} of {total // MIB} MiB are free; arena and execution buffer take {wanted // MIB} MiB"
            + ("" if arena_bytes else f", and {(rest - buffer_pages * page_bytes) // MIB} MiB are kept for the rest")
            + ": lower GEARMESH_ARENA_MB or GEARMESH_WINDOW_MB, or end what else uses the device"
        )
    return Room(page_bytes, pages, buffer_pages)
