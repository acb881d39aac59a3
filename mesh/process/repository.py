"""What lies in a model repository: the folders of packages and of their versions, not what is in them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh import wire
from mesh.names import NAME, VERSION

MANIFEST = "model.toml"


@dataclass(frozen=True, slots=True)
class Found:
    """A look at a repository."""

    versions: dict[str, list[str]] = field(default_factory=dict)  # {package: its versions, oldest first}
    faults: dict[str, str] = field(default_factory=dict)  # {package, or ref of a version: why it is none}


def look(repository: Path) -> Found:
    """Every package, and why what looks like one, or like a version, is none. What is neither is left out."""
    found = Found()
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


def _look_at(folder: Path, found: Found) -> None:
    if not folder.is_dir():
        return
    versions = sorted(versions_in(folder), key=int)
    shared = (folder / MANIFEST).is_file()  # holds for versions that have none of their own
    good = [version for version in versions if shared or (folder / version / MANIFEST).is_file()]
    if shared or good:
        found.versions[folder.name] = good
    for version in versions:
        if version not in good:
            why = f"{folder / version} has no {MANIFEST}, and neither has {folder}"
            found.faults[wire.ref_of(folder.name, version)] = why


def versions_in(folder: Path) -> Iterator[str]:
    """The folders in a package's that are named as versions are. Raises: OSError."""
    return (entry.name for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and entry.is_dir())


def scan_repository(repository: Path) -> dict[str, list[str]]:
    """{package: its versions, oldest first}."""
    return look(repository).versions
