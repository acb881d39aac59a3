"""The folders of packages and versions in a model repository; their content is not read here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh import wire
from mesh.names import NAME, VERSION

MANIFEST = "model.toml"


@dataclass(frozen=True, slots=True)
class RepositoryScan:
    """The result of one scan of a repository."""

    versions: dict[str, list[str]] = field(default_factory=dict)  # {package: its versions, oldest first}
    faults: dict[str, str] = field(default_factory=dict)  # {package, or ref of a version: why it is not valid}


def look(repository: Path) -> RepositoryScan:
    """Every package and version, and why each folder that looks like one is not. Other folders are left out."""
    found = RepositoryScan()
    try:
        folders = sorted(repository.iterdir()) if repository.is_dir() else []
    except OSError:
        return found
    for folder in folders:
        if not NAME.fullmatch(folder.name):
            continue
        try:
            _look_at(folder, found)
        except OSError as error:
            found.faults[folder.name] = f"{error.filename} cannot be read: {error.strerror}"
    return found


def _look_at(folder: Path, found: RepositoryScan) -> None:
    if not folder.is_dir():
        return
    versions = sorted(versions_in(folder), key=int)
    shared = (folder / MANIFEST).is_file()  # this manifest holds for every version without one of its own
    good = [version for version in versions if shared or (folder / version / MANIFEST).is_file()]
    if shared or good:
        found.versions[folder.name] = good
    for version in versions:
        if version not in good:
            why = f"{folder / version} has no {MANIFEST}, and neither has {folder}"
            found.faults[wire.ref_of(folder.name, version)] = why


def versions_in(folder: Path) -> Iterator[str]:
    """The folders in a package's folder that are named like versions. Raises: OSError."""
    return (entry.name for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and entry.is_dir())


def scan_repository(repository: Path) -> dict[str, list[str]]:
    """{package: its versions, oldest first}."""
    return look(repository).versions
