"""A device that is only emulated: how long its LOADs and EXECs take, as a profile file says. Pure.

    {"name": "h100", "memory_mb": 65536, "page_mb": 16, "load_gb_per_s": 50.0, "load_fixed_ms": 0.02,
     "models": {"resnet50": {"weights_mb": 51, "exec_ms": {"1": 0.9, "2": 1.0, "4": 1.3}}},
     "default": {"exec_ms": {"intercept": 0.8, "slope": 0.11}}}

`exec_ms` gives durations for some batch sizes, or a line over the batch size. A model with open dimensions has a
formula over the elements of a batch instead, or `sizes`, which gives durations for some extents (`sized_times`):

    "encoder": {"dims": {"seq": [1, 512]}, "exec_ms": {"intercept": 0.9, "element": 0.0005, "free": 600}}
    "encoder": {"sizes": [{"extents": [64], "exec_ms": {"1": 0.9}}, {"extents": [512], "exec_ms": {"1": 1.4}}]}

`elements_max` is what fits in memory: rows of a batch times their padded extents. The simulator reads such files, too.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated

import msgspec

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.core.sized_times import (
    FORMULA,
    FORMULA_MORE,
    between,
    formula_ms,
    grid_of,
    interpolate,
    rounded,
    tables_fault,
)
from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import GearmeshError
from mesh.sizes import Extents, holds
from mesh.wire.ranges import OPEN_MAX

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ProfileError(GearmeshError):
    """A profile file cannot be used; `str()` names the key and what is allowed."""


class SizeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long batches take whose rows are padded to these extents."""

    extents: tuple[int, ...]
    exec_ms: dict[str, NotNegative]  # {batch: ms}, or {"intercept": ms, "slope": ms}


class ModelTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long one model takes on the device."""

    exec_ms: dict[str, NotNegative] = {}  # {batch: ms}, {"intercept": ms, "slope": ms}, or a formula; see sized_times
    weights_mb: Positive | None = None
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    dims: dict[str, tuple[int, int]] = {}  # {open dimension: least and greatest extent}: for the simulator
    sizes: tuple[SizeTable, ...] = ()  # in place of exec_ms: a table for each of some extents, a whole grid
    elements_max: Annotated[int, msgspec.Meta(ge=1)] | None = None  # rows x extents that fit in memory; None: any


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of device, and the models whose times on it are known."""

    name: str
    memory_mb: Positive = 65536.0
    page_mb: Positive = 16.0
    load_gb_per_s: Positive = 12.3
    load_fixed_ms: NotNegative = 0.02
    models: dict[str, ModelTimes] = {}
    default: ModelTimes | None = None

    @property
    def pages(self) -> int:
        """Number of pages in the arena."""
        return int(self.memory_mb // self.page_mb)

    @property
    def page_bytes(self) -> int:
        """Bytes in a page."""
        return int(self.page_mb * (1 << 20))

    def times(self, model: str) -> ModelTimes | None:
        """The times of the model, or the default times; None if there are neither."""
        return self.models.get(model, self.default)

    def load_s(self, weights_bytes: int) -> float:
        """Seconds that a LOAD of so many bytes takes."""
        return self.load_fixed_ms / 1e3 + weights_bytes / (self.load_gb_per_s * 1e9)


LINE = {"intercept", "slope"}


def exec_s(times: ModelTimes, batch: int, extents: Extents = ()) -> float:
    """Seconds that EXEC of so many rows takes, padded to these extents; (): the model has no open dimension.

    Between two sizes that are given, times lie on a line.
    """
    if times.sizes:
        cells = {table.extents: _rows_ms(table.exec_ms, batch) for table in times.sizes}
        return between(cells, extents or max(cells)) / 1e3
    if "element" in times.exec_ms:
        return formula_ms(times.exec_ms, batch, extents) / 1e3
    return _rows_ms(times.exec_ms, batch) / 1e3


def _rows_ms(given: dict[str, float], batch: int) -> float:
    """Milliseconds by a line over the rows, or by a table of some numbers of rows."""
    if given.keys() == LINE:
        return given["intercept"] + given["slope"] * batch
    return interpolate(sorted((int(size), ms) for size, ms in given.items()), batch)


def sizes_of(
    times: ModelTimes, dims: Sequence[wire.Dim], batches: Sequence[int], edges: Sequence[Sequence[int]]
) -> tuple[wire.SizeTimes, ...]:
    """What a device reports as measured: durations for each cell of the edges, of those `batches` that fit in memory.

    With two dimensions cells are the product of the edges of each. In cells that hold no row at all nothing is
    measured. () without open dimensions.
    """
    if not dims:
        return ()
    found = []
    for extents in product(*edges):
        fitting = [batch for batch in batches if fits(times, batch, extents)]
        if fitting:
            durations = {batch: exec_s(times, batch, extents) for batch in fitting}
            found.append(wire.SizeTimes(extents=extents, exec_s=durations))
    return tuple(found)


def fits(times: ModelTimes, batch: int, extents: Extents) -> bool:
    """Whether so many rows of these extents fit: in `elements_max`, and by the largest batches in a table.

    What is too much for some extents is too much for greater ones.
    """
    if times.elements_max is not None and batch * math.prod(extents) > times.elements_max:
        return False
    if not times.sizes:
        return True
    edges = grid_of([table.extents for table in times.sizes])
    if not holds(tuple(own[-1] for own in edges), extents):
        return False
    cell = rounded(edges, extents)
    limits = [
        max(map(int, table.exec_ms))
        for table in times.sizes
        if table.exec_ms.keys() != LINE and holds(cell, table.extents)
    ]
    return batch <= min(limits, default=batch)


def own_edges(times: ModelTimes, dims: Sequence[wire.Dim]) -> list[list[int]] | None:
    """The edges of the table of sizes, if it has one of as many dimensions; each ends with the greatest extent."""
    if not times.sizes or len(times.sizes[0].extents) != len(dims):
        return None
    edges = grid_of([table.extents for table in times.sizes])
    return [
        sorted({*(edge for edge in own if dim.least <= edge < dim.most), dim.most})
        for own, dim in zip(edges, dims, strict=True)
    ]


def parse_profile(text: str, place: str) -> DeviceProfile:
    """The profile in the text of a file. `place` names it in faults. Raises: ProfileError, which names the key."""
    try:
        profile = msgspec.json.decode(text, type=DeviceProfile)
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{place}: {error}") from error
    entries = [(f"models.{name}", times) for name, times in profile.models.items()]
    if profile.default is not None:
        entries.append(("default", profile.default))
    for key, times in entries:
        fault = times_fault(times)
        if fault:
            raise ProfileError(f"{place}: {key}.{fault}")
    if not entries:
        raise ProfileError(f"{place}: models: give at least one model, or a default")
    if profile.page_bytes < 1:
        raise ProfileError(f"{place}: page_mb: {profile.page_mb} MiB is less than a byte")
    if profile.pages < 1:
        raise ProfileError(f"{place}: memory_mb: must hold at least one page of {profile.page_mb} MiB")
    return profile


def times_fault(times: ModelTimes) -> str:
    """What is wrong with the times, beginning with the key, and what would be right; empty if nothing."""
    if times.sizes:
        if times.exec_ms:
            return "exec_ms: give either that or sizes"
        fault = tables_fault([table.extents for table in times.sizes])
        if fault:
            return f"sizes: {fault}"
        for table in times.sizes:
            fault = _rows_fault(table.exec_ms)
            if fault:
                return f"sizes.exec_ms of {list(table.extents)}: {fault}"
    elif "element" in times.exec_ms:
        given = times.exec_ms
        if not FORMULA <= given.keys() <= FORMULA | FORMULA_MORE or given["intercept"] + given.get("least", 0.0) <= 0:
            return (
                "exec_ms: a formula has intercept, element, and any of square, least and free; intercept or least is "
                f"above 0; got {dict(list(given.items())[:6])}"
            )
    else:
        fault = _rows_fault(times.exec_ms)
        if fault:
            return f"exec_ms: {fault}"
    return _dims_fault(times)


def _rows_fault(given: dict[str, float]) -> str:
    if given.keys() & LINE:
        good = given.keys() == LINE and given["intercept"] + given["slope"] > 0
    else:
        sizes = [int(key) for key in given if key.isascii() and key.isdigit()]
        good = bool(given) and len(set(sizes)) == len(given) and min(sizes) > 0 and min(given.values()) > 0
    if good:
        return ""
    return (
        "give either intercept and slope, not both 0, or a positive number of "
        f"milliseconds for each of some batch sizes, none twice; got {dict(list(given.items())[:4])}"
    )


def _dims_fault(times: ModelTimes) -> str:
    dims = times.dims
    if len(dims) > OPEN_MAX or not all(name.isidentifier() and 1 <= a <= b for name, (a, b) in dims.items()):
        return f"dims: at most {OPEN_MAX}, each a name with its least and greatest extent; got {dims}"
    most = tuple(most for _, most in dims.values())
    if times.sizes and dims and not holds(max(table.extents for table in times.sizes), most):
        return f"sizes: they must reach the greatest extents, {list(most)}"
    if dims and not fits(times, 1, most):
        return f"elements_max: must hold one row of the greatest extents, {math.prod(most)}; got {times.elements_max}"
    return ""


@dataclass(slots=True)
class Emulator:
    """A device whose phases take as long as `duration_s` says. It runs one LOAD and one EXEC at a time, in order.

    INPUT and OUTPUT take no time. The emulated device drives it with the real clock, the simulator with a virtual one.
    """

    duration_s: Callable[[Phase, Job], float]
    _free_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))  # {lane: when it is free}
    _ends: list[tuple[float, int, Phase, Job, Done]] = field(default_factory=list)  # heap of phases that run, by end
    _begun: int = 0  # phases so far

    def begin(self, phase: Phase, job: Job, now: float) -> Done | None:
        """Queues a phase behind the others of its lane. Returns how it went if it is over already."""
        if phase is Phase.INPUT or phase is Phase.OUTPUT:
            return Done(now, now, 0.0)
        begin_s = max(now, self._free_s[phase])
        if begin_s > job.action.latest_s:
            return Done(now, now, 0.0, ActionCode.LATE)
        duration_s = self.duration_s(phase, job)
        end_s = self._free_s[phase] = begin_s + duration_s
        self._begun += 1
        heapq.heappush(self._ends, (end_s, self._begun, phase, job, Done(begin_s, end_s, duration_s)))
        return None

    def due(self, now: float) -> list[tuple[Phase, Job, Done]]:
        """Phases that have ended by now, in the order of their ends. Each is returned once."""
        ended = []
        while self._ends and self._ends[0][0] <= now:
            _, _, phase, job, done = heapq.heappop(self._ends)
            ended.append((phase, job, done))
        return ended

    def wake_at(self) -> float | None:
        """When the next phase ends; None if none runs."""
        return self._ends[0][0] if self._ends else None
