"""Versions put into a model repository: whole or not at all, and never over one that is there."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from broker import wire
from broker.errors import PackageError
from broker.tensors import DTYPES
from gpu_worker.contents import Contents
from gpu_worker.packages import Package, manifest_of, read_package

Row = tuple[str, tuple[int, ...]]  # (dtype, shape of one row)


@contextlib.contextmanager
def staged(repository: Path, name: str, version: str, factory_allow: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder for the version's files. What is written there becomes the version if the block ends well and it can be
    read; otherwise nothing of it remains. Over a version that is there with the same content nothing is done.

    Raises: PackageError; with code version_exists if the version is there and is another one.
    """
    repository.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=repository))
    try:
        folder = stage / name / version
        folder.mkdir(parents=True)
        yield folder
        written = read_package(stage, wire.ref_of(name, version), factory_allow)
        _settle(written, repository, factory_allow)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def adopt(
    package: Package, repository: Path, factory_allow: tuple[str, ...] = (), *, number: str | None = None
) -> None:
    """A package from elsewhere is a version in the repository, as by `staged`; if a number is given, under that one."""
    name, version = wire.split_ref(package.ref)
    version = number or version
    if package.folder == (repository / name / version).resolve():
        return
    with staged(repository, name, version, factory_allow) as folder:
        shutil.copytree(package.folder, folder, dirs_exist_ok=True)
        shutil.copy(manifest_of(package.folder), folder)


def _settle(written: Package, repository: Path, factory_allow: tuple[str, ...]) -> None:
    name, version = wire.split_ref(written.ref)
    target = repository / name / version
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        with contextlib.suppress(OSError):  # somebody else wrote it at the same time
            os.rename(written.folder, target)
            return
    check_free(written, repository, factory_allow)


def check_free(package: Package, repository: Path, factory_allow: tuple[str, ...] = ()) -> None:
    """The repository has no such version, or this one. Raises: PackageError, version_exists."""
    name, version = wire.split_ref(package.ref)
    if not (repository / name / version).exists():
        return
    try:
        there = read_package(repository, package.ref, factory_allow)
        differing = Contents().differing(package, there)
    except PackageError as error:
        differing = error.faults[:1]
    if differing:
        raise version_exists(package.ref, repository, ", ".join(differing))


def version_exists(ref: str, repository: Path, differing: str) -> PackageError:
    """A version is there that is not the same."""
    name, version = wire.split_ref(ref)
    there = [int(entry.name) for entry in (repository / name).iterdir() if entry.name.isdigit()]
    return PackageError(
        ref,
        [
            f"version {version} of {name} is in {repository} already and is another one ({differing}). A version never "
            f"changes: give this one a number that is free, {max(there, default=int(version)) + 1}"
        ],
        "version_exists",
    )


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
