"""How long a model's batches take: from a line, a table, or a profile file. See profiles/README.md for those inside.

A file is either what `gpu_worker.core.emulation` reads (a device and its models), or the `profiles/*.json` that a
worker writes beside a model version once it has measured it.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from gearmesh.simulation.fields import TomlTable, is_number, shown
from gpu_worker.core.emulation import (
    LINE,
    DeviceProfile,
    ModelTimes,
    ProfileError,
    SizeTable,
    parse_profile,
    times_fault,
)
from gpu_worker.profiling import ProfileFile

FOLDER = Path(__file__).parent / "profiles"
BATCH_LIMIT = 1024
BATCH_MAX = 32  # if a line is given without `batch_max`
STRETCH = 2  # a table is extrapolated from its last two sizes up to this multiple of its largest


def built_in() -> list[str]:
    """Names of the profiles that come with the simulator."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read_profile(table: TomlTable, folder: Path) -> DeviceProfile | None:
    """The profile that `table.profile` names; None if it cannot be used (a fault is noted)."""
    name = table.text("profile", None)
    file = FOLDER / f"{name}.json" if name in built_in() else folder / name
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        table.fault("profile", f"must be a file that can be read, or one of {', '.join(built_in())}")
        return None
    try:
        return _parse(text, file)
    except ProfileError as error:
        table.faults.append(f"{table.key('profile')}: {error}")
        return None


def _parse(text: str, file: Path) -> DeviceProfile:
    """The profile in a file of either format. Raises: ProfileError."""
    place = file.name
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ProfileError(f"{place}: no JSON: {error}") from error
    if isinstance(found, dict) and found.keys() == {"format", "kind", "profile"}:
        profile = _measured(text, file)
    else:
        profile = parse_profile(text, place)
    for name, times in profile.models.items():
        fault = durations_fault(times)
        if fault:
            raise ProfileError(f"{place}: models.{name}.{fault}")
    if not profile.models:
        raise ProfileError(f"{place}: models: give at least one model")
    return profile


def _measured(text: str, file: Path) -> DeviceProfile:
    """A worker's measurements as the profile of a device with this one model. Raises: ProfileError."""
    try:
        found = msgspec.json.decode(text, type=ProfileFile)
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{file.name}: no profile as a worker writes it: {error}") from error
    names = [part for part in file.resolve().parts if part]
    name = names[-4] if len(names) >= 4 and file.parent.name == "profiles" else file.stem  # REPOSITORY/NAME/1/profiles/
    batch_max = min(max(found.profile.exec_s, default=1), BATCH_LIMIT)
    if found.profile.sizes:
        tables = tuple(SizeTable(cell.extents, _milliseconds(cell.exec_s)) for cell in found.profile.sizes)
        batch_max = min(max(max(cell.exec_s) for cell in found.profile.sizes), BATCH_LIMIT)
        return DeviceProfile(name=found.kind, models={name: ModelTimes(sizes=tables, batch_max=batch_max)})
    model = ModelTimes(exec_ms=_milliseconds(found.profile.exec_s), batch_max=batch_max)
    return DeviceProfile(name=found.kind, models={name: model})


def _milliseconds(exec_s: dict[int, float]) -> dict[str, float]:
    return {str(batch): seconds * 1e3 for batch, seconds in exec_s.items()}


def durations_fault(times: ModelTimes) -> str | None:
    """What is wrong with the durations of a model, beginning with the key; None if nothing."""
    if not times.sizes and "element" not in times.exec_ms:
        fault = batches_fault(times.exec_ms)
        return f"exec_ms: {fault}" if fault else None
    for table in times.sizes:
        fault = batches_fault(table.exec_ms)
        if fault:
            return f"sizes.exec_ms of {list(table.extents)}: {fault}"
    return times_fault(times) or None


def batches_fault(exec_ms: dict[str, Any]) -> str | None:
    """What is wrong with durations by batch; None if nothing. Either a line, or a table that has batch 1."""
    if exec_ms.keys() & LINE:
        good = exec_ms.keys() == LINE and all(is_number(ms) and ms >= 0 for ms in exec_ms.values())
        if good and sum(exec_ms.values()) > 0:
            return None
        return f"must have intercept and slope, both 0 or more milliseconds and not both 0; got {shown(exec_ms)}"
    for size, ms in exec_ms.items():
        if not (size.isascii() and size.isdigit() and 1 <= int(size) <= BATCH_LIMIT):
            return f"a batch is a whole number from 1 to {BATCH_LIMIT}; got {shown(size)}"
        if not is_number(ms) or not 0 < ms < float("inf"):
            return f"a duration is a number of milliseconds above 0; got {shown(ms)} for batch {size}"
    longest_ms, longest = 0.0, 0
    for batch, duration_ms in sorted((int(size), float(ms)) for size, ms in exec_ms.items()):
        if duration_ms < longest_ms / 2:
            return f"batch {batch} takes {duration_ms:g} ms, less than half of the {longest_ms:g} ms of batch {longest}"
        longest_ms, longest = max((longest_ms, longest), (duration_ms, batch))
    if "1" not in exec_ms:
        return f"must give batch 1, and any others from 2 to {BATCH_LIMIT}; got {shown(sorted(exec_ms))}"
    return None
