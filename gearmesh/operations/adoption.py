"""What `gearmesh deploy` is given: a model of the broker's repository, or a package on its way into it.

Of a package all versions arrive, or none.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gearmesh.operations.repositories import is_seen, is_the_broker_s, known_of
from gpu_worker.packages.contents import Contents
from gpu_worker.packages.package import read_package
from gpu_worker.packages.writing import adopt, check_free, written_in
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.repository import MANIFEST, look, versions_in
from mesh.versions import why_changed, why_container

ANY_FACTORY = ("",)  # whether a worker may call it is for the workers to say: nothing is called here


@dataclass(frozen=True, slots=True)
class Order:
    """What the broker is to be asked for."""

    name: str
    version: str | None
    notes: tuple[str, ...] = ()  # for the person, whatever the broker answers
    hint: str = ""  # if the broker knows no such model


def order(
    model: str, version: str | None, told: wire.CatalogueReply, repository: Path, factory_allow: tuple[str, ...]
) -> Order:
    """The package that is meant is in the broker's repository, if it can be, and is what was served under its number.

    `model`: a name, or a folder's. `repository`: of this shell's settings, for a hint. Raises: PackageError, and
    nothing has changed.
    """
    if "/" in model or os.path.isfile(os.path.join(model, MANIFEST)):
        return _of_folder(Path(os.path.abspath(model)), version, told, factory_allow)
    check_deployed(model, version, told)
    return Order(model, version, hint=_hint(model, told, repository))


def _of_folder(folder: Path, version: str | None, told: wire.CatalogueReply, factory_allow: tuple[str, ...]) -> Order:
    name, known = folder.name, known_of(told, folder.name)  # the name given, whatever the folder is a link to
    if known is not None and known.container:
        raise PackageError(str(folder), [why_container(name, str(folder))], PackageCode.NAME_TAKEN)
    versions = _versions(folder)
    if version is not None and version not in versions:
        raise PackageError(str(folder), [f"it has no version {version!r}; it has: {', '.join(versions)}"])
    notes: tuple[str, ...] = ()
    if not is_the_broker_s(folder.parent, told):
        if not is_seen(told):
            why = (
                f"the broker's repository is {told.repository} on {told.machine}, which is not seen from here: copy "
                f"the folder into it there, and `gearmesh deploy {name}`"
            )
            raise PackageError(str(folder), [why], PackageCode.NOT_WRITTEN)
        contents = known.contents if known is not None else {}
        notes = adopt_package(folder, Path(told.repository), factory_allow, contents)
    check_deployed(name, version or versions[-1], told)
    return Order(name, version or versions[-1], notes)


def adopt_package(
    folder: Path, repository: Path, factory_allow: tuple[str, ...], known: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Every version of the package in `folder` is in the repository; returns what the person should know.

    `known`: {version: digest} of what was ever served. Raises: PackageError, and nothing has changed; with code
    version_exists where the repository has another content.
    """
    refs = [wire.ref_of(folder.name, version) for version in _versions(folder)]
    packages = [read_package(folder.parent, ref, factory_allow) for ref in refs]
    notes: list[str] = []
    with written_in(repository, refs[-1]):
        for package in packages:
            check_free(package, repository, factory_allow, known)
    for package in packages:
        adopt(package, repository, factory_allow, notes=notes)
    return tuple(notes)


def _versions(folder: Path) -> list[str]:
    """The versions of a package, oldest first; one at least. Raises: PackageError."""
    try:
        versions = sorted(versions_in(folder), key=int) if folder.is_dir() else []
    except OSError as error:
        raise PackageError(str(folder), [f"{error.filename} cannot be read: {error.strerror}"]) from error
    if not versions:
        fault = f"it is no package: it needs {MANIFEST} and a folder named by a number for each version"
        raise PackageError(str(folder), [fault])
    return versions


def _hint(name: str, told: wire.CatalogueReply, repository: Path) -> str:
    """Where a package of this name lies, that is not the broker's."""
    if is_the_broker_s(repository, told):
        return ""
    try:
        _versions(repository / name)
    except PackageError:
        return ""
    return f"there is one in {repository}, which is not what is served: `gearmesh deploy {repository / name}` copies it"


def check_deployed(name: str, version: str | None, told: wire.CatalogueReply) -> None:
    """The files of a version that is to be deployed (the newest if None) are those that were served under its number.

    Raises: PackageError. Whether there is such a version is for the broker to say.
    """
    versions = look(Path(told.repository)).versions.get(name, []) if is_seen(told) else []
    asked = version or (versions[-1] if versions else "")
    if asked in versions:
        check_content(name, asked, told)


def check_content(name: str, version: str, told: wire.CatalogueReply) -> None:
    """The version's files are those that were served, if any were.

    Workers that hold the version in memory would serve on, and say that all is well, until they are started again.
    Raises: PackageError, content_changed; damaged files and missing ones are others, too.
    """
    known, repository = known_of(told, name), Path(told.repository)
    content = known.contents.get(version) if known is not None and not known.container else None
    if content is None or not is_seen(told) or not _may_read(repository / name / version):
        return
    ref = wire.ref_of(name, version)
    try:
        faults = [] if Contents().of(read_package(repository, ref, ANY_FACTORY)) == content else [why_changed(ref)]
    except PackageError as error:
        faults = [why_changed(ref), *error.faults]
    if faults:
        raise PackageError(ref, faults, PackageCode.CONTENT_CHANGED)


def _may_read(folder: Path) -> bool:
    """Nothing that is there is closed to this person: what is, the workers look at alone."""
    try:
        return all(os.access(file, os.R_OK) for file in folder.iterdir() if file.exists())
    except (FileNotFoundError, NotADirectoryError):
        return True  # nothing is there
    except OSError:
        return False
