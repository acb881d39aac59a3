"""Profiles kept in files beside the versions, so that each model is measured once per kind of device."""

import re
from pathlib import Path

import msgspec

from gpu_worker.core.measuring import Measurement
from gpu_worker.packages.reading.files import read_plain
from gpu_worker.packages.stored import PROFILE_BYTES_MAX, PROFILES
from mesh import wire
from mesh.process.files import write_whole

FORMAT = 1
DURATION_S_MAX = 3600.0  # of one LOAD or EXEC; NaN and infinity are no durations either


class ProfileFile(msgspec.Struct):
    """What a profile file holds."""

    format: int
    kind: str  # of device
    profile: wire.Profile


def profile_file(folder: Path, kind: str) -> Path:
    """The file in which a version, whose folder this is, keeps its profile for this kind of device."""
    return folder / PROFILES / (re.sub(r"[^A-Za-z0-9.]+", "-", kind).strip("-").lower() + ".json")


def read_profile(folder: Path, kind: str, batch_max: int) -> wire.Profile | None:
    """The profile that was measured before. None if there is no file, or it does not fit the version any more."""
    try:
        content = read_plain(profile_file(folder, kind), PROFILE_BYTES_MAX)
        found = msgspec.json.decode(content, type=ProfileFile)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None  # the version will be measured again, and the file overwritten
    fits = set(Measurement(batch_max).sizes) == set(found.profile.exec_s) and _is_possible(found.profile)
    return found.profile if found.format == FORMAT and found.kind == kind and fits else None


def _is_possible(profile: wire.Profile) -> bool:
    """Returns whether all durations are numbers that can have been measured: a package may have brought them."""
    durations = (profile.load_s, *profile.exec_s.values(), *profile.exec_p99_s.values())
    return all(0 <= duration <= DURATION_S_MAX for duration in durations)


def write_profile(folder: Path, kind: str, profile: wire.Profile) -> None:
    """The file holds this profile; if writing fails, the old file is unchanged. Raises: OSError, NotWritten."""
    folder.stat()  # a version whose folder is gone gets none for its profile
    fields = ProfileFile(FORMAT, kind, profile)
    content = msgspec.json.format(msgspec.json.encode(fields), indent=1)
    write_whole(profile_file(folder, kind), content, setting="GEARMESH_MODEL_REPOSITORY")
