"""Imports a model from FILE.onnx, FILE.pt2 (of torch.export.save), or MODULE:FACTORY."""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.examples import message_of
from gpu_worker.packages.export import Inputs, write_package
from gpu_worker.packages.importing.arrays import array_of, arrays_of
from gpu_worker.packages.importing.exported import read_program
from gpu_worker.packages.importing.onnx_files import write_onnx_package
from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.writing import adopt, check_known, written_in
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.repository import versions_in
from mesh.versions import next_free, number_of

ELSEWHERE = {
    ".pt": "a checkpoint or TorchScript: give the Python that makes the module, as my_module:make_model",
    ".pth": "a checkpoint: give the Python that makes the module and loads it, as my_module:make_model",
    ".safetensors": "weights alone: give the Python that makes the module and loads them, as my_module:make_model",
    ".py": "Python: give it as MODULE:FACTORY, as my_module:make_model",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What is imported, and how it will be served."""

    what: str  # FILE.onnx | FILE.pt2 | MODULE:FACTORY
    name: str
    inputs: Inputs = field(default_factory=dict)  # of a factory: {name: (dtype, shape of one row)}
    outputs: Sequence[str] | None = None  # names; None: the model's own
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the factory
    example: Mapping[str, Any] | None = None  # {input: array [rows, ...]}
    batch_max: int = 32
    slo_ms: float = 1000.0
    labels: Sequence[str] = ()
    cache: bool = True
    description: str = ""
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # {open dimension: (least, most)}
    pad: Mapping[str, float] = field(default_factory=dict)  # {input: what its open dimensions are filled up with}
    exact: bool = False
    rows: Mapping[str, str] = field(default_factory=dict)  # {output: the output that tells its rows}

    @property
    def options(self) -> dict[str, Any]:
        """The options that every kind of model has."""
        return {
            "example": self.example, "batch_max": self.batch_max, "slo_ms": self.slo_ms, "labels": self.labels,
            "cache": self.cache, "description": self.description, "dims": self.dims, "pad": self.pad,
            "exact": self.exact, "rows": self.rows,
        }  # fmt: skip


def import_model(
    source: Source,
    repository: Path,
    version: str | None,
    *,
    known: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
) -> Package:
    """The package is in the repository.

    If no version is given, it is the newest version if that has the same content, else the next one.

    `known`: {version: digest} of everything that was ever served under the name, whether it is in the repository or
    not. `notes`: receives what the person should know, as in `staged`. Raises: PackageError.
    """
    known = known or {}
    with written_in(repository, wire.ref_of(source.name, version or "1")):
        repository.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".importing-", dir=repository)
    with staging as folder:
        package = _written(source, Path(folder), version or "1")
        number = version or _number(package, repository, known)
        if not os.path.lexists(repository / source.name / number):
            check_known(package, number, repository, known)
        adopt(package, repository, number=number, notes=notes)
    return read_package(repository, wire.ref_of(source.name, number), ())


def default_name(what: str) -> str:
    """Returns a name for the model: the file's, or that of the factory's module."""
    return what.partition(":")[0].rpartition(".")[2] if _is_factory(what) else Path(what).stem


def _is_factory(what: str) -> bool:
    return ":" in what and os.sep not in what


def _number(package: Package, repository: Path, known: Mapping[str, str]) -> str:
    name, _ = wire.split_ref(package.ref)
    folder, contents = repository / name, ContentDigests()
    with written_in(repository, package.ref):
        there = sorted(versions_in(folder), key=int) if folder.is_dir() else []
    # the newest version is no package that can be read here: it keeps its number
    with contextlib.suppress(PackageError):
        if there and not contents.differing(package, read_package(repository, wire.ref_of(name, there[-1]), ())):
            return there[-1]
    gone = {version: content for version, content in known.items() if version not in there}
    return number_of(contents.of(package), gone, None) or next_free([*there, *known])


def _written(source: Source, folder: Path, version: str) -> Package:
    what = source.what
    if _is_factory(what):
        return _from_factory(source, folder, version)
    file = Path(what)
    place = f"{source.name}:{version} ({what})"
    if not file.is_file():
        raise PackageError(
            place, ["there is no such file, and MODULE:FACTORY it is not either"], PackageCode.BAD_SOURCE
        )
    if file.suffix == ".onnx":
        _only_factories(place, source)
        return write_onnx_package(folder, source.name, version, file, **source.options)
    if file.suffix == ".pt2":
        _only_factories(place, source)
        module, inputs = read_program(place, file, source.batch_max, source.dims)
        return write_package(
            folder, source.name, version, module, inputs=inputs, outputs=source.outputs, **source.options
        )
    kind = ELSEWHERE.get(file.suffix, "of no kind that can be imported: give FILE.onnx, FILE.pt2 or MODULE:FACTORY")
    raise PackageError(place, [f"the file is {kind}"], PackageCode.BAD_SOURCE)


def _only_factories(place: str, source: Source) -> None:
    if source.inputs or source.arguments:
        raise PackageError(
            place, ["the file says what its inputs are: inputs go with MODULE:FACTORY"], PackageCode.BAD_ARGUMENT
        )
    if source.outputs is not None and Path(source.what).suffix == ".onnx":
        raise PackageError(
            place, ["outputs of an ONNX file have the names that it gives them"], PackageCode.BAD_ARGUMENT
        )


# -- MODULE:FACTORY ---------------------------------------------------------------------------------------------------


def _from_factory(source: Source, folder: Path, version: str) -> Package:
    place = f"{source.name}:{version} ({source.what})"
    module = _made(place, source)
    inputs = source.inputs or _shown(place, source.example)
    if not inputs:
        why = "say what it takes: --input NAME:DTYPE:-1,... for each input, or --example FILE.npz that shows them"
        raise PackageError(place, [why], PackageCode.BAD_INPUTS)
    return write_package(folder, source.name, version, module, inputs=inputs, outputs=source.outputs, **source.options)


def _shown(place: str, example: object) -> Inputs:
    """Returns the inputs that an example shows. Raises: PackageError, code bad_example or bad_inputs."""
    if example is None:
        return {}
    try:
        arrays = {name: array_of(value) for name, value in arrays_of(example).items()}
    except ValueError as error:
        raise PackageError(place, [f"example: {error}"], PackageCode.BAD_EXAMPLE) from None
    if "" in arrays:
        why = "the example has no name for its input: give --input NAME:DTYPE:-1,... too, or a .npz with names"
        raise PackageError(place, [why], PackageCode.BAD_INPUTS)
    return {name: (str(array.dtype), tuple(array.shape[1:])) for name, array in arrays.items()}


def _made(place: str, source: Source) -> nn.Module:
    """Returns the factory's module. Raises: PackageError, code bad_source."""
    module_name, _, path = source.what.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
        if isinstance(found, nn.Module):
            return found
        made: Any = found(**source.arguments)
    except (Exception, SystemExit) as error:  # it is the author's code
        raise PackageError(
            place, [f"{source.what} cannot be made: {message_of(error)}"], PackageCode.BAD_SOURCE
        ) from None
    if not isinstance(made, nn.Module):
        why = f"{source.what} gives a {type(made).__name__}; it must return a torch.nn.Module"
        raise PackageError(place, [why], PackageCode.BAD_SOURCE)
    return made
