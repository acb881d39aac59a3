"""How long a version takes on this kind of device: what still has to be measured, and the figures kept. Pure core, and
a file beside the version that holds them, so that they are measured once per model and device."""

import json
import os
import re
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mesh import wire

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FIRST_RUNS = 4  # of each size; the first of them warms caches and is not counted
MORE_RUNS = 16  # of sizes that are over quickly: short times scatter more
MORE_BELOW_S = 0.02
FORMAT = 1


class ProfileFile(msgspec.Struct):
    """What the file holds."""

    format: int
    kind: str
    profile: wire.Profile


@dataclass(slots=True)
class Measurement:
    """One version being measured: first every size a few times, then the quick ones some more."""

    batch_max: int
    exec_s: dict[int, list[float]] = field(default_factory=dict)  # {batch: durations, oldest first}
    load_s: list[float] = field(default_factory=list)
    _asked: int = 0  # runs that plans have asked for so far

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes to be measured: the ladder up to the maximum, and the maximum."""
        return (*(size for size in LADDER if size < self.batch_max), self.batch_max)

    def ran(self, batch: int, duration_s: float) -> None:
        """A measuring run of this size has ended."""
        self.exec_s.setdefault(batch, []).append(duration_s)

    def loaded(self, duration_s: float) -> None:
        """A LOAD has ended."""
        self.load_s.append(duration_s)

    def next_plan(self) -> tuple[tuple[int, int], ...]:
        """The plan, which the controller is being told; the next is due when it is done."""
        plan = self.plan()
        self._asked = sum(map(len, self.exec_s.values())) + sum(runs for _, runs in plan)
        return plan

    @property
    def due(self) -> bool:
        """What the last plan asked for is done."""
        return bool(self.load_s) and sum(map(len, self.exec_s.values())) >= self._asked

    def plan(self) -> tuple[tuple[int, int], ...]:
        """(batch, runs) still to be done, smallest first; empty once the profile is complete."""
        plan = []
        for size in self.sizes:
            runs = self.exec_s.get(size, [])
            wanted = FIRST_RUNS
            if len(runs) >= FIRST_RUNS and statistics.median(runs[1:]) < MORE_BELOW_S:
                wanted += MORE_RUNS
            if len(runs) < wanted:
                plan.append((size, wanted - len(runs)))
        return tuple(plan)

    def profile(self, engine: str, load_from: str = "host") -> wire.Profile | None:
        """The profile, once it is complete."""
        if self.plan() or not self.load_s:
            return None
        return wire.Profile(
            exec_s={size: statistics.median(self.exec_s[size][1:]) for size in self.sizes},
            load_s=statistics.median(self.load_s),
            engine=engine,
            load_from=load_from,
        )


def profile_file(folder: Path, kind: str) -> Path:
    """Where a version keeps its profile for this kind of device."""
    return folder / "profiles" / (re.sub(r"[^A-Za-z0-9.]+", "-", kind).strip("-").lower() + ".json")


def read_profile(folder: Path, kind: str, batch_max: int) -> wire.Profile | None:
    """The profile measured before; None if there is none, or it does not fit the version any more."""
    try:
        found = msgspec.json.decode(profile_file(folder, kind).read_bytes(), type=ProfileFile)
    except (OSError, msgspec.MsgspecError):
        return None  # it will be measured again, and written over
    fits = set(Measurement(batch_max).sizes) == set(found.profile.exec_s)
    return found.profile if found.format == FORMAT and found.kind == kind and fits else None


def write_profile(folder: Path, kind: str, profile: wire.Profile) -> None:
    """The profile is kept beside the version, whole or not at all. Raises: OSError."""
    file = profile_file(folder, kind)
    file.parent.mkdir(exist_ok=True)
    fields = {"format": FORMAT, "kind": kind, "profile": msgspec.to_builtins(profile)}
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as out:
        json.dump(fields, out, indent=1)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)
