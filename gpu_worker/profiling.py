"""Profiles kept in files beside the versions, so that each model is measured once per kind of device."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gpu_worker.core.figures import Cell
from gpu_worker.core.gridding import are_possible
from gpu_worker.core.measuring import ladder
from gpu_worker.devices.base import Traits
from gpu_worker.packages.reading.files import read_plain
from gpu_worker.packages.stored import PROFILE_BYTES_MAX, PROFILES
from mesh import wire
from mesh.process.files import write_whole

FORMAT = 1  # of profiles of versions without open dimensions
SIZED_FORMAT = 2  # of those with durations by extents
DURATION_S_MAX = 3600.0  # of one LOAD or EXEC; NaN and infinity are no durations either


class ProfileFile(msgspec.Struct, omit_defaults=True):
    """What a profile file holds."""

    format: int
    kind: str  # of device
    profile: wire.Profile
    slo_ms: float = 0.0  # of a version with open dimensions: what was of use followed from it


def profile_file(folder: Path, kind: str) -> Path:
    """The file in which a version, whose folder this is, keeps its profile for this kind of device."""
    return folder / PROFILES / (re.sub(r"[^A-Za-z0-9.]+", "-", kind).strip("-").lower() + ".json")


def profile_kind(device: str, traits: Traits) -> str:
    """Returns the kind of device, engine and place of the weights for which a profile holds; `device`: its kind."""
    usual = Traits()
    engine = [traits.engine] if traits.engine != usual.engine else []
    place = [f"weights on {traits.load_from}"] if traits.load_from != usual.load_from else []
    return ", ".join((device, *engine, *place))


def read_profile(
    folder: Path, kind: str, spec: wire.ModelSpec, cells: Sequence[Cell] = (), rows: Sequence[int] = ()
) -> wire.Profile | None:
    """The profile that was measured before. None if there is no file, or it does not fit the version any more.

    `cells`: all batches that the device can execute of a version with open dimensions; (): of any extents, and of these
    `rows`; (): those of the ladder.
    """
    try:
        content = read_plain(profile_file(folder, kind), PROFILE_BYTES_MAX)
        found = msgspec.json.decode(content, type=ProfileFile)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None  # the version will be measured again, and the file overwritten
    profile = found.profile
    if spec.dims:
        right = (found.format, found.slo_ms) == (SIZED_FORMAT, spec.slo_ms)
        right = right and are_possible(profile.sizes, spec.dims, rows or ladder(spec.batch_max), cells)
        fits = right and profile.exec_s == profile.sizes[-1].exec_s
    else:
        fits = found.format == FORMAT and not profile.sizes and set(ladder(spec.batch_max)) == set(profile.exec_s)
    return profile if found.kind == kind and fits and _is_possible(profile) else None


def _is_possible(profile: wire.Profile) -> bool:
    """Returns whether all durations are numbers that can have been measured: a package may have brought them."""
    cells = [duration for cell in profile.sizes for duration in cell.exec_s.values()]
    durations = (profile.load_s, *profile.exec_s.values(), *profile.exec_p99_s.values(), *cells)
    return all(0 <= duration <= DURATION_S_MAX for duration in durations)


def write_profile(folder: Path, kind: str, profile: wire.Profile, slo_ms: float = 0.0) -> None:
    """The file holds this profile of a version with this objective; if writing fails, the old file is unchanged.

    Raises: OSError, NotWritten.
    """
    folder.stat()  # a version whose folder is gone gets none for its profile
    sized = bool(profile.sizes)
    fields = ProfileFile(SIZED_FORMAT if sized else FORMAT, kind, profile, slo_ms if sized else 0.0)
    content = msgspec.json.format(msgspec.json.encode(fields), indent=1)
    write_whole(profile_file(folder, kind), content, setting="GEARMESH_MODEL_REPOSITORY")
