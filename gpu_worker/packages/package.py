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
import tomllib
import zipfile
import zlib
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
from safetensors import SafetensorError, safe_open

from gpu_worker.packages.manifests import faults_of, sound
from mesh import wire
from mesh.errors import PackageError
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES

ALIGNMENT = 256  # bytes; CUDA guarantees it for its own allocations, so no kernel is slower on the image
BATCH_MAX = 1024
TENSORS_MAX = 64  # of inputs, and of outputs, of one model
MANIFEST, WEIGHTS, EXAMPLE = "model.toml", "weights.safetensors", "example.safetensors"
ONNX = ".onnx"  # suffix of graphs that take their weights by name
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_WIDTH = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    dtype: str
    shape: list[int]


class _Architecture(msgspec.Struct, forbid_unknown_fields=True):
    graph: str = ""
    factory: str = ""
    factory_args: dict[str, Any] = {}


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of model.toml."""

    inputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    outputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    architecture: _Architecture
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=BATCH_MAX)] = 32
    slo_ms: Annotated[float, msgspec.Meta(gt=0, le=600_000)] = 1000.0
    cache: bool = True
    labels: list[str] = []
    description: str = ""


class _GraphNotes(msgspec.Struct):
    """The fields of gearmesh.json inside a graph."""

    weights: list[str]  # in the order in which the graph takes them


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the image."""

    name: str
    dtype: str  # in the notation of safetensors: F32, BF16, ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the image
    size: int  # bytes


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
            digest.update(_graph_text(self.graph))
        else:
            digest.update(json.dumps([self.factory, self.factory_args], sort_keys=True).encode())
        digest.update(json.dumps([(w.name, w.dtype, w.shape) for w in self.layout]).encode())
        digest.update(msgspec.json.encode([self.spec.inputs, self.spec.outputs]))
        return digest.hexdigest()[:16]

    def pages(self, page_bytes: int) -> int:
        """Returns the number of pages of the image.

        It is at least one, so residency also has a meaning without weights.
        """
        return max(1, -(-self.image_bytes // page_bytes))


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
        return _read(ref, folder, factory_allow)
    except OSError as error:  # a folder that may not be searched; unreadable files are reported with the other faults
        raise PackageError(ref, [f"{error.filename} cannot be read: {error.strerror}"]) from error


def _read(ref: str, folder: Path, factory_allow: tuple[str, ...]) -> Package:
    name, version = wire.split_ref(ref)
    faults: list[str] = []
    manifest_file = manifest_of(folder)
    manifest = _read_manifest(manifest_file, faults)
    spec = _spec(manifest, faults) if manifest is not None else None
    graph = _check_architecture(manifest.architecture, folder, factory_allow, faults) if manifest is not None else None
    if spec is not None and not faults:
        _check_example(folder / EXAMPLE, spec, faults)
    stored = _read_layout(folder / WEIGHTS, faults)
    order = _weight_order(graph, faults) if graph is not None and graph.suffix != ONNX else None
    if stored is not None and order is not None:
        _check_names(stored.keys(), order, faults)
    if faults or manifest is None or spec is None or stored is None:
        raise PackageError(f"{name}/{version}", faults)
    layout, size = _lay_out([(tensor, *stored[tensor]) for tensor in (sorted(stored) if order is None else order)])
    architecture = manifest.architecture
    return Package(
        ref, folder, spec, graph, architecture.factory, architecture.factory_args, layout, size, manifest_file,
        manifest.description,
    )  # fmt: skip


def manifest_of(folder: Path) -> Path:
    """Returns the path of the model.toml that holds for a version's folder; it need not exist."""
    own = folder / MANIFEST
    return own if own.is_file() else folder.parent / MANIFEST


def _check_names(stored: Set[str], order: list[str], faults: list[str]) -> None:
    missing = [tensor for tensor in order if tensor not in stored]
    extra = sorted(stored - set(order))
    if missing:
        faults.append(f"weights.safetensors: the graph takes tensors that are not there: {_few(missing)}")
    if extra:
        faults.append(f"weights.safetensors: tensors that the graph does not take: {_few(extra)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_manifest(file: Path, faults: list[str]) -> _Manifest | None:
    """Returns what model.toml says, without its faulty parts, so that the rest can be checked in the same run."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return msgspec.convert(found, _Manifest)
    except OSError as error:
        faults.append(f"model.toml: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"model.toml: is not TOML: {error}")
    except msgspec.ValidationError:
        faults.extend(f"model.toml: {fault}" for fault in faults_of(found, _Manifest))
        kept = {"inputs": [], "outputs": [], **sound(found, _Manifest)}
        return _Manifest(**kept) if "architecture" in kept else None
    return None


def _spec(manifest: _Manifest, faults: list[str]) -> wire.ModelSpec:
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            faults.append(f"model.toml: {kind}: a name occurs twice")
        for tensor in tensors:
            if tensor.dtype not in DTYPES:
                faults.append(
                    f"model.toml: {kind} {tensor.name}: dtype {tensor.dtype!r} is none of {', '.join(DTYPES)}"
                )
            if not tensor.shape or tensor.shape[0] != -1 or any(extent < 1 for extent in tensor.shape[1:]):
                faults.append(
                    f"model.toml: {kind} {tensor.name}: shape must be [-1, ...] with the batch first and then positive "
                    f"extents; got {tensor.shape}"
                )
    return wire.ModelSpec(
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        batch_max=manifest.batch_max,
        slo_ms=manifest.slo_ms,
        cacheable=manifest.cache,
        labels=tuple(manifest.labels),
    )


def _tensors(tensors: list[_Tensor]) -> tuple[wire.TensorSpec, ...]:
    return tuple(wire.TensorSpec(name=t.name, dtype=t.dtype, shape=tuple(t.shape)) for t in tensors)


def _check_architecture(
    architecture: _Architecture, folder: Path, factory_allow: tuple[str, ...], faults: list[str]
) -> Path | None:
    if bool(architecture.graph) == bool(architecture.factory):
        faults.append('model.toml: architecture: give either graph = "graph.pt2" or factory = "module:callable"')
        return None
    if architecture.factory:
        if not any(architecture.factory.startswith(prefix) for prefix in factory_allow):
            faults.append(
                f"model.toml: architecture.factory {architecture.factory!r} is not allowed: GEARMESH_FACTORY_ALLOW has "
                f"{', '.join(factory_allow) or 'nothing'}"
            )
        return None
    graph = folder / architecture.graph
    if not graph.is_file() or graph.parent != folder:
        faults.append(f"{architecture.graph}: there is no such file in {folder.name}/")
        return None
    return graph


def _read_layout(file: Path, faults: list[str]) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Returns {tensor: (dtype, shape)} from the header alone; None if no header can be read."""
    try:
        with safe_open(file, framework="np") as stored:
            found = {}
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                tensor = stored.get_slice(name)
                found[name] = (tensor.get_dtype(), tuple(tensor.get_shape()))
    except FileNotFoundError:
        faults.append(f"{WEIGHTS}: {_not_opened(file) or 'there is no such file'}")
        return None
    except (OSError, SafetensorError) as error:
        faults.append(f"weights.safetensors: cannot be read (cut short, or not safetensors): {error}")
        return None
    for name, (dtype, _) in found.items():
        if dtype not in _WIDTH:
            faults.append(f"weights.safetensors: {name} has dtype {dtype}; allowed are {', '.join(_WIDTH)}")
    return found


def _not_opened(file: Path) -> str:
    """Returns why an existing file cannot be opened; safetensors reports each such file as missing."""
    try:
        file.open("rb").close()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "could not be read, and can be by now"


def _check_example(file: Path, spec: wire.ModelSpec, faults: list[str]) -> None:
    """Appends a fault unless the file is missing or holds rows of the model's inputs: one or more, as many of each."""
    try:
        with safe_open(file, framework="np") as stored:
            found = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            shapes = {name: (_NAMES.get(t.get_dtype(), ""), list(t.get_shape())) for name, t in found.items()}
    except FileNotFoundError:
        if why := _not_opened(file):
            faults.append(f"{EXAMPLE}: {why}")
        return
    except (OSError, SafetensorError) as error:
        faults.append(f"{EXAMPLE}: cannot be read (cut short, or not safetensors): {error}")
        return
    wanted = {tensor.name: (tensor.dtype, list(tensor.shape[1:])) for tensor in spec.inputs}
    rows = {shape[0] if shape else 0 for _, shape in shapes.values()}
    fits = {name: (dtype, shape[1:]) for name, (dtype, shape) in shapes.items()} == wanted
    if not fits or len(rows) != 1 or min(rows) < 1:
        faults.append(
            f"{EXAMPLE}: must hold one row or more, as many of each, of the inputs that model.toml lists; has {shapes}"
        )


def _weight_order(graph: Path, faults: list[str]) -> list[str] | None:
    """Returns the names of the tensors that the graph takes before its inputs; None if the graph does not list them."""
    try:
        with zipfile.ZipFile(graph) as archive:
            entry = next((name for name in archive.namelist() if name.endswith("extra/gearmesh.json")), None)
            if entry is None:
                faults.append(f"{graph.name}: was not written by gearmesh's export (no gearmesh.json in it)")
                return None
            return msgspec.json.decode(archive.read(entry), type=_GraphNotes).weights
    except (OSError, zipfile.BadZipFile, zlib.error, msgspec.MsgspecError) as error:
        faults.append(f"{graph.name}: is not a readable torch.export archive: {error}")
        return None


def _graph_text(graph: Path) -> bytes:
    if graph.suffix == ONNX:
        return graph.read_bytes()
    with zipfile.ZipFile(graph) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        return archive.read(entry)


def _lay_out(tensors: list[tuple[str, str, tuple[int, ...]]]) -> tuple[tuple[Weight, ...], int]:
    layout = []
    offset = 0
    for name, dtype, shape in tensors:
        size = _WIDTH[dtype]
        for extent in shape:
            size *= extent
        layout.append(Weight(name, dtype, shape, offset, size))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(layout), offset
