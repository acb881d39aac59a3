"""Orders about versions: PREPARE and FORGET are numbered, so that a report shows whether it was made before them. Pure.

A worker says with each report of a version which order about that version it obeyed last. A report that names another
one crossed with the order on its way: what it says is over. It is not believed, and the answer to the order will come.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

from controller.core.orders import ToWorker
from mesh import wire

VERSIONS_MAX = 1 << 16  # whose last order is remembered, for each worker
GONE_MAX = 256  # workers that are gone, and may come back with what they were told


@dataclass(slots=True)
class VersionOrders:
    """Numbers the orders of one life of a controller; those of its predecessors have other numbers."""

    name: str = ""  # of the controller, which no other life has
    _count: int = 0
    _last: dict[str, dict[str, int]] = field(default_factory=dict)  # {worker: {ref: its last order}}, oldest first
    _first: int = field(init=False)

    def __post_init__(self) -> None:
        self._first = int.from_bytes(blake2b(self.name.encode(), digest_size=5).digest()) << 20

    def prepare(self, worker: str, ref: str, content: str) -> ToWorker:
        """The worker is to prepare the version, in this content if one is named."""
        return ToWorker(worker, wire.Prepare(ref=ref, content=content, order=self._next(worker, ref)))

    def forget(self, worker: str, ref: str) -> ToWorker:
        """The worker is to forget the version."""
        return ToWorker(worker, wire.Forget(ref=ref, order=self._next(worker, ref)))

    def is_over(self, worker: str, report: wire.Prepared) -> bool:
        """Whether the report was made before the worker obeyed our last order about its version.

        A report that names no order may be of a worker that numbers none, and is believed.
        """
        last = self._last.get(worker, {}).get(report.ref)
        return last is not None and report.order not in (0, last)

    def gone(self, worker: str) -> None:
        """The worker is gone. What it was told is remembered: reports made before that may still come."""
        told = self._last.pop(worker, None)
        if told is not None:
            self._last[worker] = told
        while len(self._last) > GONE_MAX:
            del self._last[next(iter(self._last))]

    def joined(self, worker: str) -> None:
        """The worker is there: it is not among the first that are given up."""
        self.gone(worker)

    def _next(self, worker: str, ref: str) -> int:
        self._count += 1
        told = self._last.setdefault(worker, {})
        told.pop(ref, None)
        number = told[ref] = self._first + self._count
        if len(told) > VERSIONS_MAX:
            del told[next(iter(told))]
        return number
