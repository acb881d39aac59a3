"""What a device must have below pages and lanes: ordered streams, events, memory, capture. The seam to torch.cuda."""

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]
MemoryFull = torch.OutOfMemoryError  # raised by whatever allocates on a device


class Event(Protocol):
    """A point in a stream. Taken from a pool and recorded again and again."""

    def synchronize(self) -> None:
        """What was issued before the last record has run; waits without holding the interpreter.

        Raises: RuntimeError, if something of it failed.
        """


class Stream(Protocol):
    """Work that runs in the order of its issue, beside other streams. Used by the issuing thread only."""

    def run(self, work: Work) -> None:
        """The tensor operations that `work` calls are issued; they read and write when their turn comes."""

    def record(self, event: Event) -> None:
        """The event is behind all that was issued so far."""

    def wait(self, event: Event) -> None:
        """What is issued from now on runs after the event's last record."""


class Pinned(Protocol):
    """Host memory that the device copies from and to by itself; given back when it is let go."""

    tensor: torch.Tensor  # uint8, zeros at first


class Driver(Protocol):
    """One device."""

    name: str  # "cuda:0"
    kind: str  # equal for devices that can be expected to take equal times
    place: torch.device

    def enter(self) -> None:
        """Called once by each thread that will use the device."""

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""

    def allocate(self, size: int) -> torch.Tensor:
        """Zeros (uint8) on the device, with the alignment of ALIGNMENT at least. Raises: MemoryFull."""

    def pin(self, size: int) -> Pinned:
        """Host memory. Raises: MemoryError."""

    def stream(self, name: str) -> Stream:
        """A stream of its own."""

    def event(self, *, sleeps: bool) -> Event:
        """An event; one that sleeps costs no processor while it is waited for, and is noticed some 50 us later."""

    def seconds(self, begin: Event, end: Event) -> float:
        """Time from one recorded event to another, both reached, by the device's clock."""

    def warm_up(self, work: Work) -> None:
        """`work` has run, on a stream of its own. Only while a version is prepared."""

    def capture(self, work: Work) -> Work:
        """The operations of `work`, not run yet; what is returned issues them, inside `Stream.run`.

        It keeps what `work` refers to: tensors that are captured stay where they are as long as it is kept.
        What all captured works leave behind them in memory of their own may be shared: they never run side by side.
        Only while a version is prepared. Raises: RuntimeError, if it cannot be captured.
        """

    def trim(self) -> None:
        """Memory that nothing uses is free for captures, which cannot take it back themselves.

        May wait for all that runs, and holds up what is issued meanwhile. Only while a version is prepared.
        """

    def gather(self, arena: torch.Tensor, window: torch.Tensor, pages: torch.Tensor) -> None:
        """Copies, inside `Stream.run`: window[i] = arena[pages[i]].

        `arena` [all pages, words] int64, `window` [pages of the window, words] int64, `pages` [n] int64.
        """

    def clock_mhz(self) -> float:
        """The clock of its processors now; 0 if it is not known."""

    def keep_warm(self) -> Work | None:
        """A little captured work that keeps the clock up; None if that is no use here."""

    def allocations(self) -> dict[str, int]:
        """How often memory was asked for so far, by kind: equal before and after serving."""

    def lost(self) -> str:
        """Why this process can run nothing on it any more, if so; else "". On any thread; does not wait.

        What one call could not do (too much memory, a tensor that does not fit) leaves a device as it was. What a
        kernel did wrong, or the hardware, ends all use of it by the process, and every call from then on says so.
        """

    def close(self) -> None:
        """Nothing runs any more; whatever is the matter with the device."""
