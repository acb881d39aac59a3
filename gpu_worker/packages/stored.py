"""What the files of a version hold, read from their headers: weights, example, graph."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from gpu_worker.packages.reading.files import Faults
from gpu_worker.packages.reading.tensors import WIDTH, BadHeader, Stored, header_of, read_header
from mesh import wire
from mesh.sizes import Extents, row_shape

ALIGNMENT = 256  # bytes; CUDA guarantees it for its own allocations, so no kernel is slower on the image
WEIGHTS, EXAMPLE = "weights.safetensors", "example.safetensors"
EXAMPLE_BYTES_MAX = 256 << 20  # it is read whole, and kept while the model is tried
PROFILES = "profiles"  # folder of what was measured
PROFILE_BYTES_MAX = 1 << 20
ONNX = ".onnx"  # suffix of graphs that take their weights by name
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the image."""

    name: str
    dtype: str  # in the notation of safetensors: F32, BF16, ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the image
    size: int  # bytes


def read_layout(file: Path, faults: Faults) -> dict[str, Stored] | None:
    """Returns {tensor: where it is in the file} from the header alone; None if there is no sound header."""
    try:
        return read_header(file)
    except FileNotFoundError:
        faults.append(f"{file.name}: there is no such file")
    except OSError as error:
        faults.unread(file.name, error)
    except BadHeader as error:
        faults.extend(f"{file.name}: {fault}" for fault in error.faults)
    return None


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


def check_example(file: Path, spec: wire.ModelSpec, faults: Faults) -> None:
    """Appends a fault unless the file is missing or holds rows of the model's inputs: some, as many of each."""
    if not file.is_symlink() and not file.exists():
        return
    found = read_layout(file, faults)
    if found is None:
        return
    shapes = {name: (_NAMES.get(tensor.dtype, ""), list(tensor.shape)) for name, tensor in found.items()}
    rows = {shape[0] if shape else 0 for _, shape in shapes.values()}
    extents = _extents(spec, {name: shape[1:] for name, (_, shape) in shapes.items()})
    wanted = (
        {tensor.name: (tensor.dtype, list(row_shape(tensor, spec.dims, extents))) for tensor in spec.inputs}
        if extents is not None
        else None
    )
    fits = {name: (dtype, shape[1:]) for name, (dtype, shape) in shapes.items()} == wanted
    if not fits or len(rows) != 1 or min(rows) < 1:
        faults.append(
            f"{EXAMPLE}: must hold one row or more, as many of each, of the inputs that model.toml lists; has {shapes}"
        )
    size = sum(tensor.size for tensor in found.values())
    if size > EXAMPLE_BYTES_MAX:
        faults.append(f"{EXAMPLE}: its rows take {size} bytes; at most {EXAMPLE_BYTES_MAX} are read: keep fewer rows")


def _extents(spec: wire.ModelSpec, rows: Mapping[str, Sequence[int]]) -> Extents | None:
    """Returns the extents of an example, as the first input with each dimension has it; None if they are none."""
    found = []
    for dim in spec.dims:
        tensor = next(tensor for tensor in spec.inputs if dim.name in tensor.dims)
        row, at = rows.get(tensor.name, ()), tensor.dims.index(dim.name)
        if at >= len(row) or not dim.least <= row[at] <= dim.most:
            return None
        found.append(row[at])
    return tuple(found)


def lay_out(tensors: list[tuple[str, str, tuple[int, ...]]]) -> tuple[tuple[Weight, ...], int]:
    """Returns the places of tensors (name, dtype, shape) in the image, in this order, and the bytes of the image."""
    layout = []
    offset = 0
    for name, dtype, shape in tensors:
        size = WIDTH[dtype] * math.prod(shape)
        layout.append(Weight(name, dtype, shape, offset, size))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(layout), offset


def places(opened: FileIO, layout: Sequence[Weight]) -> list[tuple[int, int, int]]:
    """Returns (offset in the image, offset in the file, bytes) of each tensor with values, in the image's order.

    Raises: BadHeader, also if the file's tensors are not those of the layout; OSError.
    """
    stored = header_of(opened)
    held = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    if held != {weight.name: (weight.dtype, weight.shape) for weight in layout}:
        raise BadHeader(["its tensors are others than they were"])
    return [(weight.offset, stored[weight.name].start, weight.size) for weight in layout if weight.size]
