"""Packages from elsewhere, on their way into the model repository: all of their versions, or nothing of them."""

from pathlib import Path

from broker import wire
from broker.errors import PackageError
from broker.operator import Operator
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
        raise PackageError(str(folder), ["it is no package: it needs model.toml and a folder named by a number for each version"])
    packages = [read_package(folder.parent, wire.ref_of(folder.name, version), factory_allow) for version in versions]
    if folder.parent == repository:
        return folder.name
    for package in packages:
        check_free(package, repository, factory_allow)
    for package in packages:
        adopt(package, repository, factory_allow)
    return folder.name


def check_current(operator: Operator, name: str, version: str | None, repository: Path, allow: tuple[str, ...]) -> None:
    """If the version is the current one, its files are still those that are served. Raises: PackageError if not.

    A mesh serves on from memory, and would say that all is well until it is started again.
    """
    entry = next((entry for entry in operator.table().models if entry.name == name), None)
    if entry is None or entry.current is None or version not in (None, entry.current) or entry.container:
        return
    newest = max((entry.name for entry in (repository / name).glob("[0-9]*") if entry.name.isdigit()), key=int, default="")
    ref = wire.ref_of(name, entry.current)
    content = entry.contents.get(entry.current)
    if content and version in (entry.current, None) and (version or newest) == entry.current:
        if Contents().of(read_package(repository, ref, allow)) != content:
            raise PackageError(ref, [why_changed(ref)], CHANGED)
