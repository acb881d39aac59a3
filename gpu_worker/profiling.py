"""Profiles kept in files beside the versions, so that each model is measured once per kind of device."""

import re
from pathlib import Path

import msgspec

from gpu_worker.core.measuring import Measurement
from mesh import wire
from mesh.process.files import write_whole

FORMAT = 1


class ProfileFile(msgspec.Struct):
    """What a profile file holds."""

    format: int
    kind: str  # of device
    profile: wire.Profile


def profile_file(folder: Path, kind: str) -> Path:
    """The file in which a version, whose folder this is, keeps its profile for this kind of device."""
    return folder / "profiles" / (re.sub(r"[^A-Za-z0-9.]+", "-", kind).strip("-").lower() + ".json")


def read_profile(folder: Path, kind: str, batch_max: int) -> wire.Profile | None:
    """The profile that was measured before. None if there is no file, or it does not fit the version any more."""
    try:
        found = msgspec.json.decode(profile_file(folder, kind).read_bytes(), type=ProfileFile)
    except (OSError, msgspec.MsgspecError):
        return None  # the version will be measured again, and the file overwritten
    fits = set(Measurement(batch_max).sizes) == set(found.profile.exec_s)
    return found.profile if found.format == FORMAT and found.kind == kind and fits else None


def write_profile(folder: Path, kind: str, profile: wire.Profile) -> None:
    """The file holds this profile; if writing fails, the old file is unchanged. Raises: OSError, NotWritten."""
    folder.stat()  # a version whose folder is gone gets none for its profile
    fields = ProfileFile(FORMAT, kind, profile)
    content = msgspec.json.format(msgspec.json.encode(fields), indent=1)
    write_whole(profile_file(folder, kind), content, setting="GEARMESH_MODEL_REPOSITORY")
