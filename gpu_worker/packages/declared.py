"""What model.toml declares of a version, read and checked."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gpu_worker.packages.manifests import faults_of, sound
from mesh import wire
from mesh.tensors import DTYPES

BATCH_MAX = 1024
TENSORS_MAX = 64  # of inputs, and of outputs, of one model
MANIFEST = "model.toml"


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


def manifest_of(folder: Path) -> Path:
    """Returns the path of the model.toml that holds for a version's folder; it need not exist."""
    own = folder / MANIFEST
    return own if own.is_file() else folder.parent / MANIFEST


def read_manifest(file: Path, faults: list[str]) -> _Manifest | None:
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


def check_architecture(
    architecture: _Architecture, folder: Path, factory_allow: tuple[str, ...], faults: list[str]
) -> Path | None:
    """Returns the graph's path, or None. Appends a fault unless there is a graph here or a factory that is allowed."""
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
