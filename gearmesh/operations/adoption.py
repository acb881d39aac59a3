"""The argument of `gearmesh deploy`: a model in the broker's repository, or a package that is copied into it.

Either all versions of a package are copied, or none.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gearmesh.operations.repositories import is_seen, is_the_broker_s, known_of
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.package import read_package
from gpu_worker.packages.writing import adopt, check_free, written_in
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.repository import MANIFEST, look, versions_in
from mesh.versions import why_changed, why_container

ANY_FACTORY = ("",)  # allows every factory: nothing is called here, and workers check whether they may call it


@dataclass(frozen=True, slots=True)
class Order:
    """What to ask the broker for."""

    name: str
    version: str | None
    notes: tuple[str, ...] = ()  # for the user, whatever the broker answers
    hint: str = ""  # for the user if the broker does not know the model


def order(
    model: str, version: str | None, told: wire.CatalogueReply, repository: Path, factory_allow: tuple[str, ...]
) -> Order:
    """The order for a model or package. The package is then in the broker's repository, with the content served so far.

    `model`: a model's name, or a package's folder. `repository`: of this shell's settings, for a hint. Raises:
    PackageError; then nothing has changed.
    """
    if "/" in model or os.path.isfile(os.path.join(model, MANIFEST)):
        return _of_folder(Path(os.path.abspath(model)), version, told, factory_allow)
    check_deployed(model, version, told)
    return Order(model, version, _run_there(model, version, told), _hint(model, told, repository))


def _of_folder(folder: Path, version: str | None, told: wire.CatalogueReply, factory_allow: tuple[str, ...]) -> Order:
    name, known = folder.name, known_of(told, folder.name)  # the name given, even if the folder is a link to another
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
    return Order(name, version or versions[-1], (*notes, *_run_there(name, version or versions[-1], told)))


def _run_there(name: str, version: str | None, told: wire.CatalogueReply) -> tuple[str, ...]:
    """Says which code the version makes workers run, if it is not data alone. What is wrong with it, workers say."""
    found = _in_repository(name, version, told)
    if found is None:
        return ()
    try:
        package = read_package(Path(told.repository), wire.ref_of(name, found), ANY_FACTORY)
    except PackageError:
        return ()
    if not package.factory:
        return ()
    said = ", ".join(f"{key}={value!r}" for key, value in package.factory_args.items())
    return (
        f"{name} version {found} is no data alone: workers call {package.factory}({said}) of what is installed there",
    )


def _in_repository(name: str, version: str | None, told: wire.CatalogueReply) -> str | None:
    """Returns the version that is asked for, or else the newest; None unless it is there and can be seen from here."""
    versions = look(Path(told.repository)).versions.get(name, []) if is_seen(told) else []
    asked = version or (versions[-1] if versions else "")
    return asked if asked in versions else None


def adopt_package(
    folder: Path, repository: Path, factory_allow: tuple[str, ...], known: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Copies every version of the package in `folder` into the repository. Returns notes for the user.

    `known`: {version: digest} of what was ever served. Raises: PackageError, with code version_exists if the repository
    has the version with another content; then nothing has changed.
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
    """The versions of a package, oldest first; at least one. Raises: PackageError."""
    try:
        versions = sorted(versions_in(folder), key=int) if folder.is_dir() else []
    except OSError as error:
        raise PackageError(str(folder), [f"{error.filename} cannot be read: {error.strerror}"]) from error
    if not versions:
        fault = f"it is no package: it needs {MANIFEST} and a folder named by a number for each version"
        raise PackageError(str(folder), [fault])
    return versions


def _hint(name: str, told: wire.CatalogueReply, repository: Path) -> str:
    """A hint if a package of this name is in this shell's repository and not in the broker's; else ""."""
    if is_the_broker_s(repository, told):
        return ""
    try:
        _versions(repository / name)
    except PackageError:
        return ""
    return f"there is one in {repository}, which is not what is served: `gearmesh deploy {repository / name}` copies it"


def check_deployed(name: str, version: str | None, told: wire.CatalogueReply) -> None:
    """Checks that the files of a version to be deployed (None: the newest) are those served under its number.

    Raises: PackageError. A version that does not exist is left to the broker.
    """
    asked = _in_repository(name, version, told)
    if asked is not None:
        check_content(name, asked, told)


def check_content(name: str, version: str, told: wire.CatalogueReply) -> None:
    """Checks that the version's files are those that were served, if any were.

    Otherwise workers that hold the version in memory would go on serving it, and report success, until they are
    restarted.
    Raises: PackageError with code content_changed; also for damaged or missing files.
    """
    known, repository = known_of(told, name), Path(told.repository)
    content = known.contents.get(version) if known is not None and not known.container else None
    if content is None or not is_seen(told) or not _may_read(repository / name / version):
        return
    ref = wire.ref_of(name, version)
    try:
        faults = (
            [] if ContentDigests().of(read_package(repository, ref, ANY_FACTORY)) == content else [why_changed(ref)]
        )
    except PackageError as error:
        faults = [why_changed(ref), *error.faults]
    if faults:
        raise PackageError(ref, faults, PackageCode.CONTENT_CHANGED)


def _may_read(folder: Path) -> bool:
    """Whether this user may read every file of the folder. If not, only the workers can check the files."""
    try:
        return all(os.access(file, os.R_OK) for file in folder.iterdir() if file.exists())
    except (FileNotFoundError, NotADirectoryError):
        return True  # there are no files
    except OSError:
        return False
