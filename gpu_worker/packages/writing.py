"""Puts versions into a model repository: whole or not at all, and never over an existing version."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpu_worker.packages.contents import CHUNK_BYTES, ContentDigests
from gpu_worker.packages.declared import MANIFEST, manifest_of
from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.reading.files import open_plain
from gpu_worker.packages.stored import EXAMPLE, PROFILE_BYTES_MAX, PROFILES
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.files import disk_fault, not_written
from mesh.process.repository import versions_in
from mesh.tensors import DTYPES
from mesh.versions import next_free

PROFILES_MAX = 1000  # kinds of devices


class OptionsKept(UserWarning):
    """The version exists already with the same content and other options; it keeps its own options."""


@contextlib.contextmanager
def staged(
    repository: Path, name: str, version: str, factory_allow: tuple[str, ...] = (), notes: list[str] | None = None
) -> Iterator[Path]:
    """Yields a folder for the version's files. It becomes the version if the block ends well and it can be read.

    Otherwise nothing of it remains. If the version exists already with the same content, it is left unchanged.

    `notes`: receives what the person should know about that; without it, a warning OptionsKept is issued. Raises:
    PackageError, with code version_exists if the version exists with other content.
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
            note = _install(read_package(stage, ref, factory_allow), repository, factory_allow)
        except (OSError, PackageError):
            raise
        except Exception as error:  # libraries have errors of their own for a disk that is full
            fault = disk_fault(stage)
            if fault is None:
                raise
            raise fault from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    if note and notes is None:
        warnings.warn(note, OptionsKept, stacklevel=4)
    elif note and notes is not None:
        notes.append(note)


@contextlib.contextmanager
def written_in(repository: Path, ref: str) -> Iterator[None]:
    """An error of writing in the block is raised as PackageError, code not_written."""
    try:
        yield
    except shutil.Error as error:  # it collects the errors of several files
        ((_, file, why), *_) = error.args[0]
        raise PackageError(ref, [f"{file} cannot be written: {why}"], PackageCode.NOT_WRITTEN) from error
    except OSError as error:
        file = Path(error.filename or repository)
        why = f"{file} cannot be written: it is no folder"
        if not isinstance(error, FileExistsError):
            why = str(not_written(file, error, "GEARMESH_MODEL_REPOSITORY"))
        raise PackageError(ref, [why], PackageCode.NOT_WRITTEN) from error


def adopt(
    package: Package,
    repository: Path,
    factory_allow: tuple[str, ...] = (),
    *,
    number: str | None = None,
    notes: list[str] | None = None,
) -> None:
    """The package is a version in the repository, written as by `staged`, under `number` if that is given."""
    name, version = wire.split_ref(package.ref)
    version = number or version
    if package.folder.resolve() == (repository / name / version).resolve():
        return
    with staged(repository, name, version, factory_allow, notes) as folder:
        _copy(package, folder)


def _copy(package: Package, folder: Path) -> None:
    """The folder holds the files that a version has, and no others; each was a plain file. Raises: OSError."""
    graph = [package.graph] if package.graph is not None else []
    example = [package.example_file] if package.example_file is not None else []
    for file in (*graph, package.weights_file, *example):
        _copy_file(file, folder / file.name)
    _copy_file(manifest_of(package.folder), folder / MANIFEST)
    measured = package.folder / PROFILES
    if measured.is_dir() and not measured.is_symlink():
        (folder / PROFILES).mkdir()
        for file in sorted(measured.glob("*.json"))[:PROFILES_MAX]:
            if file.is_file() and not file.is_symlink():
                _copy_file(file, folder / PROFILES / file.name, PROFILE_BYTES_MAX)


def _copy_file(file: Path, target: Path, bytes_max: int | None = None) -> None:
    with open_plain(file) as source, target.open("xb") as copied:
        if bytes_max is None or os.fstat(source.fileno()).st_size <= bytes_max:
            shutil.copyfileobj(source, copied, CHUNK_BYTES)


def _set_modes(stage: Path, folder: Path) -> None:
    """Everything in the folder has the modes that the umask allows, whoever wrote it with whatever mode.

    Files that are linked from elsewhere are left alone: they belong to their owner.
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


def _install(written: Package, repository: Path, factory_allow: tuple[str, ...]) -> str:
    name, version = wire.split_ref(written.ref)
    target = repository / name / version
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        try:
            os.rename(written.folder, target)
            return ""
        except OSError:
            if not target.exists():
                raise  # otherwise somebody else wrote it at the same time
    return check_free(written, repository, factory_allow)


def check_free(
    package: Package, repository: Path, factory_allow: tuple[str, ...] = (), known: Mapping[str, str] | None = None
) -> str:
    """The repository has no such version, or this very one. Returns what the person should know about the existing one.

    `known`: {version: digest} of everything that was ever served. Raises: PackageError, code version_exists; it names
    the package's folder unless the package is on its way into the repository.
    """
    name, version = wire.split_ref(package.ref)
    there = repository / name / version
    if not there.exists():
        check_known(package, version, repository, known or {})
        return ""
    contents = ContentDigests()
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
    """No other content was ever served under this number, even if its folder is gone. Raises: PackageError."""
    if number not in known or ContentDigests().of(package) == known[number]:
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
    """Returns a note if the version was imported again with other options; empty if the options are the same."""
    if not options:
        return ""
    places = [str(there.folder / EXAMPLE) if name == EXAMPLE else f"{name} in {there.manifest}" for name in options]
    return f"{there.ref} was there already, with this content. Kept as it was: {', '.join(places)}; change it there"


def manifest_text(spec: wire.ModelSpec, description: str, graph: str) -> str:
    """Returns the text of model.toml."""
    lines = [
        f"description = {_quoted(description)}",
        f"batch_max = {spec.batch_max}",
        f"slo_ms = {spec.slo_ms}",
        f"cache = {json.dumps(spec.cacheable)}",
        f"labels = [{', '.join(map(_quoted, spec.labels))}]",
        *(["exact = true"] if spec.exact else []),
        "",
        "[architecture]",
        f"graph = {_quoted(graph)}",
    ]
    if spec.dims:
        lines += ["", "[dims]", *(f"{dim.name} = [{dim.least}, {dim.most}]" for dim in spec.dims)]
    for table, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        for tensor in tensors:
            lines += ["", f"[[{table}]]", *_tensor_lines(tensor)]
    return "\n".join(lines) + "\n"


def _tensor_lines(tensor: wire.TensorSpec) -> list[str]:
    assert tensor.dtype in DTYPES, f"{tensor.name}: dtype {tensor.dtype} cannot travel"
    names = tensor.dims or ("",) * len(tensor.shape[1:])
    row = (_quoted(name) if name else str(extent) for name, extent in zip(names, tensor.shape[1:], strict=True))
    lines = [f"name = {_quoted(tensor.name)}", f'dtype = "{tensor.dtype}"', f"shape = [{', '.join(('-1', *row))}]"]
    if tensor.pad:
        lines.append(f"pad = {int(tensor.pad) if tensor.pad == int(tensor.pad) else tensor.pad!r}")
    told = (("owner", tensor.owner), ("count", tensor.count))
    return lines + [f"{field} = {_quoted(name)}" for field, name in told if name]


def _quoted(text: str) -> str:
    """Returns a TOML string: JSON's, but for one character that TOML wants escaped and JSON does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
