"""Profiles kept in files beside the versions, so that each model is measured once per kind of device."""

import json
import os
import re
import tempfile
from pathlib import Path

import msgspec

from gpu_worker.core.measuring import Measurement
from mesh import wire

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
    """The file holds this profile; if writing fails, the old file is unchanged. Raises: OSError."""
    file = profile_file(folder, kind)
    file.parent.mkdir(exist_ok=True)
    fields = {"format": FORMAT, "kind": kind, "profile": msgspec.to_builtins(profile)}
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as out:
        json.dump(fields, out, indent=1)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)
