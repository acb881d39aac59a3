"""What model.toml declares of a version, read and checked."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from gpu_worker.packages.manifests import faults_of, sound
from gpu_worker.packages.reading.files import Faults, read_plain
from mesh import wire
from mesh.tensors import DTYPES, byte_count

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
# of TOML: texts and comments, of which what follows sees none; tomllib takes the square of a key's parts in memory
QUOTED = re.compile(r'''(?s:"""(?:[^\\]|\\.)*?"""|\'{3}.*?\'{3})|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*''')
LONG_KEY = re.compile(r"(?<![\w-])[\w-]+(?:[ \t]*\.[ \t]*[\w-]+){16}")
GRAPHS = (".pt2", ".onnx")
FETCHES = "pretrained"  # argument of pytorchcv's factories that makes them download files
FACTORY = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)


_Extent = Annotated[int, msgspec.Meta(ge=-EXTENT_MAX, le=EXTENT_MAX)]
_Plain = bool | int | float | str


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    dtype: str
    shape: Annotated[list[_Extent], msgspec.Meta(max_length=RANK_MAX)]


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
            elif tensor.dtype in DTYPES:
                faults.extend(_size_fault(kind, tensor, manifest.batch_max))
            if not tensor.name.isprintable():
                faults.append(f"model.toml: {kind} {tensor.name!r}: a name holds printable characters alone")
    return wire.ModelSpec(
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        batch_max=manifest.batch_max,
        slo_ms=manifest.slo_ms,
        cacheable=manifest.cache,
        labels=tuple(manifest.labels),
    )


def _size_fault(kind: str, tensor: _Tensor, batch_max: int) -> Iterator[str]:
    """Yields a fault if the largest batch of the tensor takes more memory than any may."""
    rows = max(batch_max, ROWS_LEAST)
    size = byte_count(tensor.dtype, tensor.shape[1:]) * rows
    if size > BATCH_BYTES_MAX:
        yield (
            f"model.toml: {kind} {tensor.name}: {rows} rows of {tensor.dtype} {tensor.shape[1:]} take {size} bytes; at "
            f"most {BATCH_BYTES_MAX} may be in a batch: give a smaller batch_max, or mend the shape"
        )


def _tensors(tensors: list[_Tensor]) -> tuple[wire.TensorSpec, ...]:
    return tuple(wire.TensorSpec(name=t.name, dtype=t.dtype, shape=tuple(t.shape)) for t in tensors)


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
