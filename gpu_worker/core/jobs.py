"""What the lanes, the devices and the pump say to each other about one LOAD or INFER. Pure data.

What is made for every action is a plain class: a dataclass stays interpreted where the rest is compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpu_worker.core.cutting import Cut, Shape
from gpu_worker.core.incoming import Incoming
from gpu_worker.core.pages import Holding
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import Extents, holds

OK = ActionCode.OK


class Phase(Enum):
    """What a lane does. The values are the names of the lanes in traces."""

    LOAD = "load"
    INPUT = "input"
    EXEC = "exec"
    OUTPUT = "output"

    __hash__ = object.__hash__  # by identity: an enum computes its own hash in Python, which costs on the hot path


class Done:
    """How one phase went, as the device measured it. Instants are in the worker's clock."""

    __slots__ = ("begin_s", "clock_mhz", "code", "duration_s", "end_s", "gathered", "memory_bytes", "message")

    def __init__(
        self,
        begin_s: float,
        end_s: float,
        duration_s: float,
        code: ActionCode = OK,
        message: str = "",
        gathered: bool = False,
        clock_mhz: float = 0.0,
        memory_bytes: int = 0,
    ) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.duration_s = duration_s
        self.code = code
        self.message = message
        self.gathered = gathered  # EXEC gathered the weights into the execution buffer first
        self.clock_mhz = clock_mhz  # 0: unknown
        self.memory_bytes = memory_bytes  # that a measuring run took, of EXEC; 0: that was not seen


class Job:
    """One LOAD or INFER on its way through the lanes. Jobs are equal only to themselves."""

    __slots__ = (
        "action", "cut", "epoch", "exec", "holding", "incoming", "input", "order", "output_row_bytes", "output_shapes",
        "outputs", "pages", "phase", "received_s", "revoked", "slot", "spec", "tensors",
    )  # fmt: skip

    def __init__(
        self,
        action: wire.Load | wire.Infer,
        received_s: float,
        order: int,
        epoch: int = 0,
        tensors: Sequence[Sequence[bytes | memoryview]] = (),
    ) -> None:
        self.action = action
        self.received_s = received_s
        self.order = order  # in which the lanes took it
        self.epoch = epoch  # of the controller that ordered it
        self.tensors = tensors  # an INFER's inputs: per part, in the order of the spec
        self.phase: Phase | None = None  # the device executes it now; None: the job waits
        self.input: Done | None = None
        self.exec: Done | None = None  # of a LOAD: the copy
        self.pages: tuple[int, ...] = ()  # where the weights are
        self.holding: Holding | None = None  # while EXEC reads them
        self.revoked = False  # nobody waits for it: it ends when the phase that runs has ended
        self.slot: Any = None  # belongs to the device: where the inputs lie
        self.output_row_bytes: tuple[int, ...] = ()  # bytes of one row of each output, as the model's spec promises
        self.spec: wire.ModelSpec | None = None  # of an INFER whose rows may differ in size; None: all rows are alike
        self.outputs: list[memoryview] = []  # written by the device: one tensor per output, all rows
        self.output_shapes: Sequence[Shape] = ()  # written by the device, if there is a `spec`: with all rows
        self.cut: Cut | None = None  # if there is a `spec`: what each part gets, once OUTPUT has ended well, or before
        self.incoming: Incoming | None = None  # inputs that the order did not carry; `tensors` has them from INPUT on


class StartPhase:
    """The device has to start this phase of this job now."""

    __slots__ = ("job", "phase")

    def __init__(self, phase: Phase, job: Job) -> None:
        self.phase = phase
        self.job = job


class Report:
    """The controller has to be told this. The job, if there is one, has ended; with code OK it carries the outputs."""

    __slots__ = ("job", "result")

    def __init__(self, result: wire.ActionResult, job: Job | None = None) -> None:
        self.result = result
        self.job = job


Effect = StartPhase | Report


@dataclass(frozen=True, slots=True)
class Servable:
    """What the lanes have to know of a version that the device can execute."""

    pages: int
    batch_max: int
    batch_sizes: frozenset[int] | None  # None: any size up to the maximum
    output_row_bytes: tuple[int, ...]  # of each output; () if there is a `spec`
    spec: wire.ModelSpec | None = None  # of a version whose rows may differ in size; None: its rows are all alike
    limits: tuple[tuple[Extents, int], ...] = ()  # (extents, most rows that fit with them), ascending; (): not known

    def largest(self, extents: Extents) -> int:
        """Returns the most rows that a batch of these extents may have; 0 if the model does not take them.

        It is what was measured at the least extents that hold these, which ascend by one dimension after the other.
        """
        dims = self.spec.dims if self.spec is not None else ()
        if len(extents) != len(dims) or any(
            not dim.least <= extent <= dim.most for dim, extent in zip(dims, extents, strict=True)
        ):
            return 0
        if not self.limits:
            return self.batch_max
        rows = next((rows for outer, rows in self.limits if holds(outer, extents)), 0)
        return min(rows, self.batch_max)
