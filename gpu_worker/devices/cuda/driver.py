"""What pages and lanes need of a device: ordered streams, events, memory, capture. The interface to torch.cuda."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Work = Callable[[], None]
MemoryFull = torch.OutOfMemoryError  # raised by every allocation on a device


class Event(Protocol):
    """A point in a stream. Events come from a pool and are recorded again and again."""

    def synchronize(self) -> None:
        """Everything issued before the last record has run. Waits without holding the interpreter.

        Raises: RuntimeError if a part of it failed.
        """


class Stream(Protocol):
    """Work that runs in the order of its issue, beside other streams. Only the issuing thread uses it."""

    def run(self, work: Work) -> None:
        """The tensor operations that `work` calls are issued; they read and write when their turn comes."""

    def record(self, event: Event) -> None:
        """The event comes after everything that was issued so far."""

    def wait(self, event: Event) -> None:
        """Everything issued from now on runs after the event's last record."""


class Pinned(Protocol):
    """Host memory that the device can copy from and to by itself; freed when the object is dropped."""

    tensor: torch.Tensor  # uint8, zeros at first


Enough = Callable[[Sequence[float]], bool]  # whether these runs, in seconds, are enough
Timed = Callable[[Work, Enough], Sequence[float]]  # returns the seconds of each run, at least one


class Driver(Protocol):
    """One device."""

    name: str  # as in "cuda:0"
    kind: str  # equal for devices that are expected to take equal times
    place: torch.device

    def enter(self) -> None:
        """The calling thread can use the device. Each thread calls it once."""

    def memory(self) -> tuple[int, int]:
        """Returns (free, total) bytes of the device."""

    def allocate(self, size: int) -> torch.Tensor:
        """Returns zeros (uint8 `[size]`) on the device, aligned to ALIGNMENT at least. Raises: MemoryFull."""

    def pin(self, size: int) -> Pinned:
        """Returns pinned host memory. Raises: MemoryError."""

    def stream(self, name: str) -> Stream:
        """Returns a new stream."""

    def event(self, *, sleeps: bool) -> Event:
        """Returns an event.

        If it `sleeps`, waiting for it costs no CPU time, and its end is noticed some 50 us later.
        """

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two recorded events that were reached, by the device's clock."""

    def warm_up(self, work: Work) -> None:
        """`work` has run, on a stream of its own. Only while a version is prepared."""

    def capture(self, work: Work) -> Work:
        """Returns a function that issues the operations of `work` inside `Stream.run`; they are captured, not run yet.

        The function keeps what `work` refers to: captured tensors stay in place as long as it lives. Captured works may
        share the memory for their intermediate results, because they never run at the same time. Only while a version
        is prepared. Raises: RuntimeError if it cannot be captured.
        """

    def timer(self) -> Timed:
        """Returns a function that captures works and runs them until it is enough, timed by the device's clock.

        What its captures took is free once the function is dropped and `trim` was called. Only while a version is
        prepared. It raises: MemoryFull; RuntimeError if a work cannot be captured.
        """

    def trim(self) -> None:
        """Memory that nothing uses is available to captures, which cannot reclaim it themselves.

        It may wait for everything that runs, and delays what is issued meanwhile. Only while a version is prepared.
        """

    def gather(self, arena: torch.Tensor, buffer: torch.Tensor, pages: torch.Tensor) -> None:
        """Copies, inside `Stream.run`: buffer[i] = arena[pages[i]].

        `arena` `[all pages, words]` int64, `buffer` (for execution) `[its pages, words]` int64, `pages` `[n]`
        int64.
        """

    def clock_mhz(self) -> float:
        """Returns the clock of the device's processors now, in MHz; 0 if unknown."""

    def keep_warm(self) -> Work | None:
        """Returns a little captured work that keeps the clock up; None if that is of no use here."""

    def allocations(self) -> dict[str, int]:
        """Returns {kind: number of allocations so far}; the numbers do not change while serving."""

    def lost(self) -> str:
        """Returns why this process can run nothing more on the device; "" if it can. Any thread; does not wait.

        A call that failed (too much memory, a tensor that does not fit) leaves a device as it was. A fault of a kernel
        or of the hardware ends all use of the device by the process, and every later call reports it.
        """

    def close(self) -> None:
        """Nothing runs any more, whatever state the device is in."""
