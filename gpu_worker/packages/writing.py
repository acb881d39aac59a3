"""Versions put into a model repository: whole or not at all, and never over one that is there."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from broker.repository import versions_in
from gpu_worker.packages.contents import Contents
from gpu_worker.packages.package import EXAMPLE, Package, manifest_of, read_package
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.tensors import DTYPES
from mesh.versions import next_free

Row = tuple[str, tuple[int, ...]]  # (dtype, shape of one row)


class OptionsKept(UserWarning):
    """A version that was to be written is there with the same content, and with other options: it keeps its own."""


@contextlib.contextmanager
def staged(
    repository: Path, name: str, version: str, factory_allow: tuple[str, ...] = (), notes: list[str] | None = None
) -> Iterator[Path]:
    """A folder for the version's files. What is written there becomes the version if the block ends well and it can be
    read; otherwise nothing of it remains. Over a version that is there with the same content nothing is done.

    `notes`: takes what the person should know of that; a warning, OptionsKept, where there is nowhere to note it.
    Raises: PackageError; with code version_exists if the version is there and is another one.
    """
    ref = wire.ref_of(name, version)
    with written_in(repository, ref):
        repository.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=repository))
        try:
            folder = stage / name / version
            folder.mkdir(parents=True)
            yield folder
            _set_modes(stage, folder)
            note = _settle(read_package(stage, ref, factory_allow), repository, factory_allow)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    if note and notes is None:
        warnings.warn(note, OptionsKept, stacklevel=4)
    elif note and notes is not None:
        notes.append(note)


@contextlib.contextmanager
def written_in(repository: Path, ref: str) -> Iterator[None]:
    """What cannot be written in the block is a PackageError, not_written."""
    try:
        yield
    except shutil.Error as error:  # of several files
        ((_, file, why), *_) = error.args[0]
        raise PackageError(ref, [f"{file} cannot be written: {why}"], PackageCode.NOT_WRITTEN) from error
    except OSError as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        why = f"{error.filename or repository} cannot be written: {why}"
        raise PackageError(ref, [why], PackageCode.NOT_WRITTEN) from error


def adopt(
    package: Package,
    repository: Path,
    factory_allow: tuple[str, ...] = (),
    *,
    number: str | None = None,
    notes: list[str] | None = None,
) -> None:
    """A package from elsewhere is a version in the repository, as by `staged`; if a number is given, under that one."""
    name, version = wire.split_ref(package.ref)
    version = number or version
    if package.folder.resolve() == (repository / name / version).resolve():
        return
    with staged(repository, name, version, factory_allow, notes) as folder:
        shutil.copytree(package.folder, folder, dirs_exist_ok=True)
        shutil.copy(manifest_of(package.folder), folder)


def _set_modes(stage: Path, folder: Path) -> None:
    """Everything in the folder may be read and written by whom the umask lets, whoever wrote it, with what mode.

    Not what is linked from elsewhere: that has its owner.
    """
    probe = stage / "mode"
    probe.touch()
    file_mode, folder_mode = (stat.S_IMODE(path.stat().st_mode) for path in (probe, folder.parent))
    for path in (folder, *folder.rglob("*")):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            path.chmod(folder_mode)
        elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            path.chmod(file_mode)


def _settle(written: Package, repository: Path, factory_allow: tuple[str, ...]) -> str:
    name, version = wire.split_ref(written.ref)
    target = repository / name / version
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        try:
            os.rename(written.folder, target)
            return ""
        except OSError:
            if not target.exists():
                raise  # else somebody wrote it at the same time
    return check_free(written, repository, factory_allow)


def check_free(
    package: Package, repository: Path, factory_allow: tuple[str, ...] = (), known: Mapping[str, str] | None = None
) -> str:
    """The repository has no such version, or this one. Returns what the person should know of that one.

    `known`: {version: digest} of what was ever served. Raises: PackageError, version_exists, which names the package's
    folder unless it is on its way into the repository.
    """
    name, version = wire.split_ref(package.ref)
    there = repository / name / version
    if not there.exists():
        check_known(package, version, repository, known or {})
        return ""
    contents = Contents()
    try:
        other = read_package(repository, package.ref, factory_allow)
        differing, options = contents.differing(package, other), contents.options_differing(package, other)
    except PackageError as error:
        differing, options = error.faults[:1], []
    if differing:
        this = "this one" if repository in package.folder.parents else str(package.folder)
        raise PackageError(
            package.ref,
            [
                f"version {version} of {name} is in {there} already and is another one than {this} "
                f"({', '.join(differing + options)}). A version never changes: give this one a number that is free, "
                f"{_free(name, repository, known or {})}"
            ],
            PackageCode.VERSION_EXISTS,
        )
    return _note(other, options)


def check_known(package: Package, number: str, repository: Path, known: Mapping[str, str]) -> None:
    """Nothing else was ever served under this number, though its folder is not there. Raises: PackageError."""
    if number not in known or Contents().of(package) == known[number]:
        return
    name, _ = wire.split_ref(package.ref)
    raise PackageError(
        wire.ref_of(name, number),
        [
            f"another content was served as version {number} of {name}, though {repository / name / number} is not "
            f"there. A version never changes: give this one a number that is free, {_free(name, repository, known)}"
        ],
        PackageCode.VERSION_EXISTS,
    )


def _free(name: str, repository: Path, known: Mapping[str, str]) -> str:
    folder = repository / name
    return next_free([*(versions_in(folder) if folder.is_dir() else ()), *known])


def _note(there: Package, options: Sequence[str]) -> str:
    """What somebody should know who brought this version once more, with other options; nothing, if with the same."""
    if not options:
        return ""
    places = [str(there.folder / EXAMPLE) if name == EXAMPLE else f"{name} in {there.manifest}" for name in options]
    return f"{there.ref} was there already, with this content. Kept as it was: {', '.join(places)}; change it there"


def manifest_text(
    inputs: Mapping[str, Row],
    outputs: Mapping[str, Row],
    batch_max: int,
    slo_ms: float,
    labels: Sequence[str],
    cache: bool,
    description: str,
    graph: str,
) -> str:
    """model.toml."""
    lines = [
        f"description = {_quoted(description)}",
        f"batch_max = {batch_max}",
        f"slo_ms = {slo_ms}",
        f"cache = {json.dumps(cache)}",
        f"labels = [{', '.join(map(_quoted, labels))}]",
        "",
        "[architecture]",
        f"graph = {_quoted(graph)}",
    ]
    specs = [("inputs", n, dtype, [-1, *shape]) for n, (dtype, shape) in inputs.items()]
    specs += [("outputs", n, dtype, [-1, *shape]) for n, (dtype, shape) in outputs.items()]
    for table, tensor, dtype, shape in specs:
        assert dtype in DTYPES, f"{tensor}: dtype {dtype} cannot travel"
        lines += ["", f"[[{table}]]", f"name = {_quoted(tensor)}", f'dtype = "{dtype}"', f"shape = {shape}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string: JSON's, but for a character that TOML wants escaped and JSON does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
