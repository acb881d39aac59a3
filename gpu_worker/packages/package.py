"""Reads a model package from disk and checks that it keeps what it promises.

    NAME/VERSION/model.toml      inputs, outputs, batch_max, slo_ms, architecture; NAME/model.toml holds for versions
                                 that have none of their own
                 graph.pt2       exported graph: (weights..., inputs...) -> outputs, batch dimension dynamic; or
                 graph.onnx      the same for onnxruntime, weights and inputs by name
                 weights.safetensors
                 example.safetensors   rows of inputs that the model can run on; if missing, zeros work
                 profiles/KIND.json    measured here, by the worker

A model's weights are one flat image: its tensors at 256-byte-aligned offsets, in the order in which the architecture
takes them. Models with the same architecture (graph and layout) share everything but the image.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from gpu_worker.packages.declared import check_architecture, manifest_of, read_manifest, spec_of
from gpu_worker.packages.reading import graphs
from gpu_worker.packages.reading.files import Faults
from gpu_worker.packages.stored import (
    EXAMPLE,
    WEIGHTS,
    Weight,
    check_example,
    check_names,
    lay_out,
    read_layout,
)
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.names import NAME, VERSION

# of a file: device, inode, size in bytes, modification time and change time in ns
Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of one version's files, each read whole."""

    content: str  # of all that an answer depends on; it identifies the version
    weights: str  # of weights.safetensors
    weights_as: Identity  # identity of weights.safetensors when it was read
    example: str  # of example.safetensors; empty if there is none


@dataclass(frozen=True)
class Package:
    """One version of a model, read and checked."""

    ref: str
    folder: Path  # of the version
    spec: wire.ModelSpec
    graph: Path | None
    factory: str
    factory_args: dict[str, Any]
    layout: tuple[Weight, ...]  # in the order in which the architecture takes them
    image_bytes: int
    manifest: Path  # model.toml, of the version or else of the model
    description: str = ""  # for people
    digests: Digests | None = None  # None until the files were read whole

    @property
    def example_file(self) -> Path | None:
        """The file of rows that the model can run on, {input: `[rows, ...]`}; None if any rows work, zeros included."""
        file = self.folder / EXAMPLE
        return file if file.is_file() else None

    @property
    def weights_file(self) -> Path:
        """The file of the weights."""
        return self.folder / WEIGHTS

    @cached_property
    def architecture(self) -> str:
        """A hash of the graph (or factory) and the layout: equal for packages that can share executables."""
        digest = hashlib.sha256()
        if self.graph is not None:
            digest.update(graphs.text(self.graph))
        else:
            digest.update(json.dumps([self.factory, self.factory_args], sort_keys=True).encode())
        digest.update(json.dumps([(w.name, w.dtype, w.shape) for w in self.layout]).encode())
        digest.update(tensors_told(self.spec.inputs) + tensors_told(self.spec.outputs))
        digest.update(msgspec.json.encode([self.spec.dims, self.spec.exact]))
        return digest.hexdigest()[:16]

    def pages(self, page_bytes: int) -> int:
        """Returns the number of pages of the image.

        It is at least one, so residency also has a meaning without weights.
        """
        return max(1, -(-self.image_bytes // page_bytes))


def tensors_told(tensors: Sequence[wire.TensorSpec]) -> bytes:
    """Returns all that is said of these tensors; name, dtype and shape alone where nothing else is.

    So versions that were served before there were open dimensions keep their digests.
    """
    told = [(spec.name, spec.dtype, spec.shape) for spec in tensors]
    more = [(spec.dims, spec.pad, spec.owner, spec.count) for spec in tensors]
    return msgspec.json.encode(
        [one + others if others != ((), 0.0, "", "") else one for one, others in zip(told, more, strict=True)]
    )


def read_package(repository: Path, ref: str, factory_allow: tuple[str, ...]) -> Package:
    """Returns the package of one version. Raises: PackageError with everything that is wrong with it."""
    name, version = wire.split_ref(ref)
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise PackageError(ref, [f"name must match {NAME.pattern}, version {VERSION.pattern}"])
    folder = repository / name / version
    try:
        if not folder.is_dir():
            why = f"there is no folder {folder.absolute()}: put it back, or deploy another version"
            raise PackageError(ref, [why])
        if folder.is_symlink():
            why = f"{folder.absolute()} is a link, and a version is a folder itself: copy what it leads to"
            raise PackageError(ref, [why], PackageCode.UNSAFE_PACKAGE)
        return _read(ref, folder, factory_allow)
    except OSError as error:  # a folder that may not be searched; unreadable files are reported with the other faults
        raise PackageError(ref, [f"{error.filename} cannot be read: {error.strerror}"]) from error


def _read(ref: str, folder: Path, factory_allow: tuple[str, ...]) -> Package:
    name, version = wire.split_ref(ref)
    faults = Faults()
    manifest_file = manifest_of(folder)
    manifest = read_manifest(manifest_file, faults)
    spec = spec_of(manifest, faults) if manifest is not None else None
    graph = check_architecture(manifest.architecture, folder, factory_allow, faults) if manifest is not None else None
    if spec is not None and not faults:
        check_example(folder / EXAMPLE, spec, faults)
    stored = read_layout(folder / WEIGHTS, faults)
    order = graphs.check(graph, faults) if graph is not None else None
    if stored is not None and order is not None:
        check_names(stored.keys(), order, faults)
    if faults or manifest is None or spec is None or stored is None:
        raise PackageError(f"{name}/{version}", faults, faults.code)
    layout, size = lay_out(
        [(name, stored[name].dtype, stored[name].shape) for name in (sorted(stored) if order is None else order)]
    )
    architecture = manifest.architecture
    return Package(
        ref, folder, spec, graph, architecture.factory, architecture.factory_args, layout, size, manifest_file,
        manifest.description,
    )  # fmt: skip
