"""What model.toml declares of a version, read and checked."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from gpu_worker.packages.manifests import faults_of, sound
from gpu_worker.packages.opening import dims_faults, known_dims, pad_fault, sizes, unused_faults
from gpu_worker.packages.reading.files import Faults, read_plain
from mesh import wire
from mesh.tensors import DTYPES, VARIABLE, byte_count
from mesh.wire.ranges import OPEN_MAX

BATCH_MAX = 1024
ROWS_LEAST = 4  # a model is tried with as many rows at once, or with its largest batch
BATCH_BYTES_MAX = 4 << 30  # of one tensor: the largest batch is made when the model is tried, and on every worker
MANIFEST_BYTES_MAX = 1 << 20
LABELS_MAX = 100_000
RANK_MAX = 32
EXTENT_MAX = 2**40
ARGUMENTS_MAX = 64  # of a factory
TENSORS_MAX = 64  # of inputs, and of outputs, of one model
MANIFEST = "model.toml"
TEXT = ": text and bytes go to a container, any Python function (docs/containers.md)"
# of TOML: texts and comments, of which what follows sees none; tomllib takes the square of a key's parts in memory
QUOTED = re.compile(r'''(?s:"""(?:[^\\]|\\.)*?"""|\'{3}.*?\'{3})|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*''')
LONG_KEY = re.compile(r"(?<![\w-])[\w-]+(?:[ \t]*\.[ \t]*[\w-]+){16}")
GRAPHS = (".pt2", ".onnx")
FETCHES = "pretrained"  # argument of pytorchcv's factories that makes them download files
FACTORY = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)


_Extent = Annotated[int, msgspec.Meta(ge=-EXTENT_MAX, le=EXTENT_MAX)]
_DimName = Annotated[str, msgspec.Meta(max_length=32)]
_Plain = bool | int | float | str


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    dtype: str
    shape: Annotated[list[_Extent | _DimName], msgspec.Meta(max_length=RANK_MAX)]  # names of open dimensions
    pad: float = 0.0  # of an input
    owner: Annotated[str, msgspec.Meta(max_length=64)] = ""  # of an output
    count: Annotated[str, msgspec.Meta(max_length=64)] = ""  # of an output

    @property
    def row(self) -> list[int | str]:
        """The shape of one row."""
        return self.shape[1:]


class _Architecture(msgspec.Struct, forbid_unknown_fields=True):
    graph: Annotated[str, msgspec.Meta(max_length=128)] = ""
    factory: Annotated[str, msgspec.Meta(max_length=256)] = ""
    factory_args: Annotated[dict[str, _Plain | list[_Plain]], msgspec.Meta(max_length=ARGUMENTS_MAX)] = {}


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of model.toml."""

    inputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    outputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    architecture: _Architecture
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=BATCH_MAX)] = 32
    slo_ms: Annotated[float, msgspec.Meta(gt=0, le=600_000)] = 1000.0
    cache: bool = True
    labels: Annotated[list[str], msgspec.Meta(max_length=LABELS_MAX)] = []
    description: str = ""
    dims: Annotated[dict[str, list[_Extent]], msgspec.Meta(max_length=TENSORS_MAX)] = {}  # {name: [least, most]}
    exact: bool = False


def manifest_of(folder: Path) -> Path:
    """Returns the path of the model.toml that holds for a version's folder; it need not exist."""
    own = folder / MANIFEST
    return own if os.path.lexists(own) else folder.parent / MANIFEST


def read_manifest(file: Path, faults: Faults) -> _Manifest | None:
    """Returns what model.toml says, without its faulty parts, so that the rest can be checked in the same run."""
    try:
        text = read_plain(file, MANIFEST_BYTES_MAX).decode()
        if LONG_KEY.search(QUOTED.sub("q", text)):
            faults.unsafe("model.toml: a key has more than sixteen parts")
            return None
        found = tomllib.loads(text)
        return msgspec.convert(found, _Manifest)
    except OSError as error:
        faults.unread("model.toml", error)
    except RecursionError:
        faults.unsafe("model.toml: its values are nested too deep")
    except msgspec.ValidationError:
        faults.extend(f"model.toml: {fault}" for fault in faults_of(found, _Manifest))
        kept = {"inputs": [], "outputs": [], **sound(found, _Manifest)}
        return _Manifest(**kept) if "architecture" in kept else None
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        faults.append(f"model.toml: is not TOML: {error}")
    return None


def spec_of(manifest: _Manifest, faults: list[str]) -> wire.ModelSpec:
    """What clients may send and get back. Appends what is wrong with the inputs and outputs to `faults`."""
    before = len(faults)
    faults.extend(f"model.toml: {fault}" for fault in dims_faults(manifest.dims))
    faults.extend(f"model.toml: {fault}" for fault in unused_faults(manifest.dims, (t.row for t in manifest.inputs)))
    if manifest.exact and not manifest.dims:
        faults.append("model.toml: exact: there are no dims that could be filled up; leave it out")
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            faults.append(f"model.toml: {kind}: a name occurs twice")
        for tensor in tensors:
            faults.extend(f"model.toml: {kind} {fault}" for fault in _tensor_faults(kind, tensor, manifest))
    dims = tuple(wire.Dim(name=n, least=low, most=high) for n, (low, high) in known_dims(manifest.dims).items())
    spec = wire.ModelSpec(
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        batch_max=manifest.batch_max,
        slo_ms=manifest.slo_ms,
        cacheable=manifest.cache,
        labels=tuple(manifest.labels),
        dims=dims[:OPEN_MAX],
        exact=manifest.exact,
    )
    if len(faults) == before and (fault := spec.fault()):
        faults.append(f"model.toml: {fault}")
    return spec


def _tensor_faults(kind: str, tensor: _Tensor, manifest: _Manifest) -> Iterator[str]:
    name, dims = tensor.name, known_dims(manifest.dims)
    if tensor.dtype not in DTYPES:
        yield f"{name}: dtype {tensor.dtype!r} is none of {', '.join(DTYPES)}{TEXT if tensor.dtype in VARIABLE else ''}"
    strange = [extent for extent in tensor.row if isinstance(extent, str) and extent not in manifest.dims]
    if strange:
        yield f"{name}: shape has {', '.join(map(repr, strange))}, of which [dims] says no least and most extent"
    loose = kind == "outputs" and manifest.exact
    if not tensor.shape or tensor.shape[0] != -1 or any(not _is_extent(extent, loose) for extent in tensor.row):
        yield (
            f"{name}: shape must be [-1, ...] with the batch first and then positive extents, or names in [dims]; got "
            f"{tensor.shape}"
        )
    elif tensor.dtype in DTYPES and all(extent in dims for extent in tensor.row if isinstance(extent, str)):
        yield from _size_faults(tensor, dims, manifest.batch_max)
    if not tensor.name.isprintable():
        yield f"{name!r}: a name holds printable characters alone"
    if kind == "inputs" and (tensor.owner or tensor.count):
        yield f"{name}: owner and count are of outputs"
    if kind == "outputs" and tensor.pad:
        yield f"{name}: pad is of inputs"
    if kind == "inputs" and tensor.pad:
        fault = pad_fault(tensor.pad, tensor.dtype, any(isinstance(extent, str) for extent in tensor.row))
        yield from (f"{name}: {fault}" for _ in range(bool(fault)))
    if kind == "outputs":
        yield from (f"{name}: {fault}" for fault in _teller_faults(tensor, manifest))


def _teller_faults(tensor: _Tensor, manifest: _Manifest) -> Iterator[str]:
    """Yields what is wrong with the output that tells to which row the elements of this one belong."""
    known = {one.name: one for one in manifest.outputs}
    if tensor.owner and tensor.count:
        yield "it has either an owner or a count"
    for field, name in (("owner", tensor.owner), ("count", tensor.count)):
        teller = known.get(name)
        if name and (teller is None or teller.dtype != "int64" or teller.shape != [-1] or teller is tensor):
            yield f"{field} {name!r} must be another output, int64 [-1]"
        elif teller is not None and (teller.owner or teller.count):
            yield f"{field} {name!r} has an owner or a count itself"
    if tensor.count and (len(tensor.shape) < 2 or not isinstance(tensor.shape[1], int) or tensor.shape[1] < 1):
        yield f"what is counted has the shape [-1, most, ...] with a number for most; got {tensor.shape}"


def _is_extent(extent: int | str, loose: bool) -> bool:
    return isinstance(extent, str) or extent >= 1 or (loose and extent == -1)


def _size_faults(tensor: _Tensor, dims: Mapping[str, tuple[int, int]], batch_max: int) -> Iterator[str]:
    """Yields a fault if the largest batch of the tensor, of the least extents, or its largest row takes too much."""
    many = max(batch_max, ROWS_LEAST)
    row = [1 if extent == -1 else extent for extent in tensor.row]
    for rows, most in ((many, False), *([(1, True)] if dims else [])):
        size = byte_count(tensor.dtype, sizes(row, dims, most)) * rows
        if size > BATCH_BYTES_MAX:
            yield (
                f"{tensor.name}: {rows} rows of {tensor.dtype} {list(sizes(row, dims, most))} take {size} bytes; at "
                f"most {BATCH_BYTES_MAX} may be in a batch: give a smaller {'most' if most else 'batch_max'}, or mend "
                "the shape"
            )


def _tensors(tensors: list[_Tensor]) -> tuple[wire.TensorSpec, ...]:
    return tuple(
        wire.TensorSpec(
            name=t.name,
            dtype=t.dtype,
            shape=tuple(-1 if isinstance(extent, str) else extent for extent in t.shape),
            dims=dims_of(t.row),
            pad=t.pad,
            owner=t.owner,
            count=t.count,
        )
        for t in tensors
    )


def dims_of(row: Sequence[int | str]) -> tuple[str, ...]:
    """Returns the name of each dimension of a row; () if none has a name."""
    names = tuple(extent if isinstance(extent, str) else "" for extent in row)
    return names if any(names) else ()


def check_architecture(
    architecture: _Architecture, folder: Path, factory_allow: tuple[str, ...], faults: Faults
) -> Path | None:
    """Returns the graph's path, or None. Appends a fault unless there is a graph here or a factory that is allowed."""
    if bool(architecture.graph) == bool(architecture.factory):
        faults.append('model.toml: architecture: give either graph = "graph.pt2" or factory = "module:callable"')
        return None
    if architecture.factory:
        _check_factory(architecture, factory_allow, faults)
        return None
    graph = folder / architecture.graph
    if graph.parent != folder or not os.path.lexists(graph):
        faults.append(f"{architecture.graph}: there is no such file in {folder.name}/")
        return None
    if graph.suffix not in GRAPHS:
        faults.append(f"model.toml: architecture.graph {architecture.graph!r} is none of *{', *'.join(GRAPHS)}")
        return None
    return graph


def _check_factory(architecture: _Architecture, factory_allow: tuple[str, ...], faults: Faults) -> None:
    """Appends what is wrong with a factory: code that is installed here, and that whoever wrote the package chose.

    Under a prefix that is allowed, it takes numbers alone: texts could be addresses and places to write to, as of
    functions that fetch weights. One that is allowed by its whole name takes what it is given.
    """
    factory, arguments = architecture.factory, architecture.factory_args
    if not FACTORY.fullmatch(factory):
        faults.append(f"model.toml: architecture.factory {factory!r} is no module:callable of public names")
    elif not any(factory.startswith(prefix) for prefix in factory_allow):
        faults.append(
            f"model.toml: architecture.factory {factory!r} is not allowed: GEARMESH_FACTORY_ALLOW has "
            f"{', '.join(factory_allow) or 'nothing'}"
        )
    elif factory not in factory_allow and "" not in factory_allow:
        texts = [name for name, value in arguments.items() if name == FETCHES or not _of_numbers(value)]
        if texts:
            faults.unsafe(
                f"model.toml: architecture.factory_args {', '.join(texts)}: it takes numbers and booleans, and no "
                f"{FETCHES}, unless GEARMESH_FACTORY_ALLOW has {factory} itself"
            )


def _of_numbers(value: _Plain | list[_Plain]) -> bool:
    return not any(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))
