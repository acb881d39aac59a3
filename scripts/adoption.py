"""Packages from elsewhere, on their way into the model repository: all of their versions, or nothing of them."""

from pathlib import Path

from broker import wire
from broker.errors import PackageError
from broker.repository import scan_repository
from broker.versions import CHANGED, why_changed
from gpu_worker.contents import Contents
from gpu_worker.importing.writing import adopt, check_free
from gpu_worker.packages import read_package


def adopt_package(folder: Path, repository: Path, factory_allow: tuple[str, ...]) -> str:
    """Every version of the package in `folder` is in the repository; returns the model's name.

    Raises: PackageError, and nothing has changed; with code version_exists where the repository has another content.
    """
    folder, repository = folder.resolve(), repository.resolve()
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    versions = [entry.name for entry in entries if entry.is_dir() and entry.name.isdigit()]
    if not versions:
        fault = "it is no package: it needs model.toml and a folder named by a number for each version"
        raise PackageError(str(folder), [fault])
    packages = [read_package(folder.parent, wire.ref_of(folder.name, version), factory_allow) for version in versions]
    if folder.parent != repository:
        for package in packages:
            check_free(package, repository, factory_allow)
        for package in packages:
            adopt(package, repository, factory_allow)
    return folder.name


def check_current(
    entry: wire.ModelEntry, version: str | None, repository: Path, factory_allow: tuple[str, ...]
) -> None:
    """The files of a version that is current, and is to be deployed (the newest if None), are those that are served.

    The mesh serves on from memory, and would say that all is well until it is started again. Raises: PackageError.
    """
    there = scan_repository(repository).get(entry.name, [])
    asked = version or (there[-1] if there else "")
    content = entry.contents.get(asked)
    if content is None or asked != entry.current or asked not in there or entry.unserved:
        return
    package = read_package(repository, wire.ref_of(entry.name, asked), factory_allow)
    if Contents().of(package) != content:
        raise PackageError(package.ref, [why_changed(package.ref)], CHANGED)
