"""A device that is only emulated: how long its LOADs and EXECs take, as a profile file says. Pure.

    {"name": "h100", "memory_mb": 65536, "page_mb": 16, "load_gb_per_s": 50.0, "load_fixed_ms": 0.02,
     "models": {"resnet50": {"weights_mb": 51, "exec_ms": {"1": 0.9, "2": 1.0, "4": 1.3}}},
     "default": {"exec_ms": {"intercept": 0.8, "slope": 0.11}}}

`exec_ms` gives durations for some batch sizes, or a line over the batch size. The simulator reads such files, too.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from gpu_worker.core.jobs import Done, Job, Phase
from mesh.codes import ActionCode
from mesh.errors import GearmeshError

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ProfileError(GearmeshError):
    """A profile file cannot be used; `str()` names the key and what is allowed."""


class ModelTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long one model takes on the device."""

    exec_ms: dict[str, NotNegative]  # {batch: ms}, or {"intercept": ms, "slope": ms}
    weights_mb: Positive | None = None
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32


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


def exec_s(times: ModelTimes, batch: int) -> float:
    """Seconds that EXEC of this batch takes. Between two sizes that are given, times lie on a line."""
    given = times.exec_ms
    if given.keys() == LINE:
        return (given["intercept"] + given["slope"] * batch) / 1e3
    return interpolate(sorted((int(size), ms) for size, ms in given.items()), batch) / 1e3


def interpolate(points: list[tuple[int, float]], batch: int) -> float:
    """The value at `batch` on the line through the two points around it.

    Beyond the last point, the line through the last two goes on; if it falls, the last value holds, as a large batch
    would take no time otherwise. `points`: (batch, value), sorted, at least one.
    """
    sizes = [size for size, _ in points]
    if len(points) == 1:
        return points[0][1] * (batch / points[0][0] if batch > points[0][0] else 1.0)
    at = min(max(bisect_left(sizes, batch), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    if batch <= x0:
        return y0
    if batch > x1:
        return y1 + max(0.0, y1 - y0) * (batch - x1) / (x1 - x0)
    return y0 + (y1 - y0) * (batch - x0) / (x1 - x0)


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
        given = times.exec_ms
        if given.keys() & LINE:
            good = given.keys() == LINE and given["intercept"] + given["slope"] > 0
        else:
            sizes = [int(key) for key in given if key.isascii() and key.isdigit()]
            good = bool(given) and len(set(sizes)) == len(given) and min(sizes) > 0 and min(given.values()) > 0
        if not good:
            raise ProfileError(
                f"{place}: {key}.exec_ms: give either intercept and slope, not both 0, or a positive number of "
                f"milliseconds for each of some batch sizes, none twice; got {dict(list(given.items())[:4])}"
            )
    if not entries:
        raise ProfileError(f"{place}: models: give at least one model, or a default")
    if profile.page_bytes < 1:
        raise ProfileError(f"{place}: page_mb: {profile.page_mb} MiB is less than a byte")
    if profile.pages < 1:
        raise ProfileError(f"{place}: memory_mb: must hold at least one page of {profile.page_mb} MiB")
    return profile


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
