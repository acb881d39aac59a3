"""What the lanes, the devices and the pump say to each other about one LOAD or INFER. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Done:
    """How one phase went, as the device measured it. Instants are in the worker's clock."""

    begin_s: float
    end_s: float
    duration_s: float
    code: ActionCode = OK
    message: str = ""
    gathered: bool = False  # EXEC gathered the weights into the execution buffer first
    clock_mhz: float = 0.0  # 0: unknown
    memory_bytes: int = 0  # that a measuring run took, of EXEC; 0: that was not seen


@dataclass(slots=True, eq=False)
class Job:
    """One LOAD or INFER on its way through the lanes."""

    action: wire.Load | wire.Infer
    received_s: float
    order: int  # in which the lanes took it
    epoch: int = 0  # of the controller that ordered it
    tensors: Sequence[Sequence[bytes | memoryview]] = ()  # an INFER's inputs: per part, in the order of the spec
    phase: Phase | None = None  # the device executes it now; None: the job waits
    input: Done | None = None
    exec: Done | None = None  # of a LOAD: the copy
    pages: tuple[int, ...] = ()  # where the weights are
    holding: Holding | None = None  # while EXEC reads them
    revoked: bool = False  # nobody waits for it: it ends when the phase that runs has ended
    slot: Any = None  # belongs to the device: where the inputs lie
    output_row_bytes: tuple[int, ...] = ()  # bytes of one row of each output, as the model's spec promises
    spec: wire.ModelSpec | None = None  # of an INFER whose rows may differ in size; None: its rows are all alike
    outputs: list[memoryview] = field(default_factory=list)  # written by the device: one tensor per output, all rows
    output_shapes: Sequence[Shape] = ()  # written by the device, if there is a `spec`: of each output, with all rows
    cut: Cut | None = None  # if there is a `spec`: what each part gets, once OUTPUT has ended well, or before
    incoming: Incoming | None = None  # inputs that the order did not carry; `tensors` has them when INPUT begins


@dataclass(slots=True)
class StartPhase:
    """The device has to start this phase of this job now."""

    phase: Phase
    job: Job


@dataclass(slots=True)
class Report:
    """The controller has to be told this. The job, if there is one, has ended; with code OK it carries the outputs."""

    result: wire.ActionResult
    job: Job | None = None


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
