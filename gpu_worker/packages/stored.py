"""What the files of a version hold, read from their headers: weights, example, graph."""

import zipfile
import zlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from mesh import wire

ALIGNMENT = 256  # bytes; CUDA guarantees it for its own allocations, so no kernel is slower on the image
WEIGHTS, EXAMPLE = "weights.safetensors", "example.safetensors"
ONNX = ".onnx"  # suffix of graphs that take their weights by name
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_WIDTH = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip


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


def read_layout(file: Path, faults: list[str]) -> dict[str, tuple[str, tuple[int, ...]]] | None:
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


def check_names(stored: Set[str], order: list[str], faults: list[str]) -> None:
    """Appends a fault unless the stored tensors are those that the graph takes, in `order`."""
    missing = [tensor for tensor in order if tensor not in stored]
    extra = sorted(stored - set(order))
    if missing:
        faults.append(f"weights.safetensors: the graph takes tensors that are not there: {_few(missing)}")
    if extra:
        faults.append(f"weights.safetensors: tensors that the graph does not take: {_few(extra)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_example(file: Path, spec: wire.ModelSpec, faults: list[str]) -> None:
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


def weight_order(graph: Path, faults: list[str]) -> list[str] | None:
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


def graph_text(graph: Path) -> bytes:
    """Returns the bytes of the graph without its weights: equal for equal architectures."""
    if graph.suffix == ONNX:
        return graph.read_bytes()
    with zipfile.ZipFile(graph) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        return archive.read(entry)


def lay_out(tensors: list[tuple[str, str, tuple[int, ...]]]) -> tuple[tuple[Weight, ...], int]:
    """Returns the places of tensors (name, dtype, shape) in the image, in this order, and the bytes of the image."""
    layout = []
    offset = 0
    for name, dtype, shape in tensors:
        size = _WIDTH[dtype]
        for extent in shape:
            size *= extent
        layout.append(Weight(name, dtype, shape, offset, size))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(layout), offset
