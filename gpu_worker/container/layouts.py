"""Where the tensors of a batch lie in the memory that a container shares with its code. Pure."""

from dataclasses import dataclass
from typing import Any

from gpu_worker.container.child.open_batches import ALIGNMENT
from gpu_worker.container.specs import ContainerError
from gpu_worker.core.cutting import varies
from mesh import wire
from mesh.sizes import most_of, row_shape
from mesh.tensors import VARIABLE, byte_count

SLOTS = 3  # batches that share memory with the child: one running, one ready behind it, one being answered
SLOT_BYTES_MAX = 1 << 30
PAGE_BYTES = 4096
PLACE_BYTES = 256  # at most, of what is said of one tensor of one request: offset, bytes, shape, alignment


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The size of a slot in bytes, and, unless batches are `open`, where the tensors of one are in it."""

    inputs: tuple[dict[str, Any], ...]  # {"name", "dtype", "shape", "pad"}, and "at" unless batches are open
    outputs: tuple[dict[str, Any], ...]  # with "owner" and "count"
    slot_bytes: int
    dims: tuple[str, ...] = ()  # names of the open dimensions, which the shapes have in the place of extents
    open: bool = False  # batches say themselves where their tensors are: sizes differ from request to request

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots."""
        return self.slot_bytes * SLOTS


def lay_out(spec: wire.ModelSpec) -> SlotLayout:
    """Returns a layout in which every tensor has room for the largest batch. Raises: ContainerError.

    Where sizes differ from request to request, a batch may be larger than its slot, if that has SLOT_BYTES_MAX; it is
    refused then. Unused parts of a slot are never touched, so they take no memory.
    """
    if varies(spec):
        return _open(spec)
    at = 0
    placed: list[list[dict[str, Any]]] = [[], []]
    for group, tensors in zip(placed, (spec.inputs, spec.outputs), strict=True):
        for tensor in tensors:
            group.append({"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "at": at})
            size = byte_count(tensor.dtype, (spec.batch_max, *tensor.shape[1:]))
            at += -(-size // ALIGNMENT) * ALIGNMENT
    slot_bytes = _whole_pages(at)
    if slot_bytes > SLOT_BYTES_MAX:
        fits = spec.batch_max * SLOT_BYTES_MAX // slot_bytes
        raise ContainerError(
            f"a batch of {spec.batch_max} rows takes {slot_bytes >> 20} MiB, more than {SLOT_BYTES_MAX >> 20}: "
            f"give --batch-max {max(1, fits)}"
        )
    return SlotLayout(tuple(placed[0]), tuple(placed[1]), slot_bytes)


def _open(spec: wire.ModelSpec) -> SlotLayout:
    need, most = 0, most_of(spec)
    for tensor in (*spec.inputs, *spec.outputs):
        shape = row_shape(tensor, spec.dims, most)
        if tensor.dtype in VARIABLE or tensor.owner or -1 in shape:
            need = SLOT_BYTES_MAX  # nothing says how large a batch may be
        else:
            need += spec.batch_max * (byte_count(tensor.dtype, shape) + PLACE_BYTES + ALIGNMENT)
    return SlotLayout(
        tuple(_described(tensor, pad=tensor.pad) for tensor in spec.inputs),
        tuple(_described(tensor, owner=tensor.owner, count=tensor.count) for tensor in spec.outputs),
        min(_whole_pages(need + PAGE_BYTES), SLOT_BYTES_MAX),
        tuple(dim.name for dim in spec.dims),
        open=True,
    )


def _described(tensor: wire.TensorSpec, **more: Any) -> dict[str, Any]:
    names = tensor.dims or ("",) * (len(tensor.shape) - 1)
    extents = [name or extent for name, extent in zip(names, tensor.shape[1:], strict=True)]
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [-1, *extents], **more}


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
