"""Message and envelope, the messages of any link, and the parts that several messages are made of."""

from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from mesh.tensors import VARIABLE, byte_count
from mesh.wire.ranges import (
    LISTED_MAX,
    OPEN_MAX,
    TENSORS_MAX,
    Count,
    DimName,
    Dtype,
    Duration,
    Extent,
    Extents,
    Id,
    Number,
    Sizes,
)

Buffer = bytes | memoryview  # a tensor's bytes, in a frame of their own
ROW_BYTES_MAX = 1 << 40  # of one tensor
CLOCK_S_MAX = 1e10  # of a monotonic clock: 300 years
INLINE_BYTES_MAX = 32 * 1024  # of one request's inputs, or outputs: more is kept by who has it, and read from there


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """A message between two services."""


def ref_of(name: str, version: str) -> str:
    """The ref of one version of a model."""
    return f"{name}:{version}"


def split_ref(ref: str) -> tuple[str, str]:
    """(name, version) of a ref."""
    name, _, version = ref.rpartition(":")
    return name, version


class Slot(Message, frozen=True, kw_only=True):
    """A place in memory that processes of one machine share: see `mesh/process/segments.py`."""

    segment: Id  # its owner's process and descriptor, and a secret that the segment begins with
    offset: Count  # bytes
    generation: Number  # of what is there: once the place is used anew, it is another


class Kept(Message, frozen=True, kw_only=True):
    """Inputs of a request, or outputs, that are too large for messages: their maker keeps them until they are read."""

    sizes: Sizes  # bytes of each tensor, in the order of the spec; they lie one after the other
    slot: Slot | None = None  # where processes of the same machine find them; None: they have to be fetched
    whole: Number = 0  # of inputs: digest of all their bytes (`mesh/digests.py`)
    sample: Number = 0  # of inputs: digest of a few of them


class Dim(Message, frozen=True, kw_only=True):
    """An open dimension of a model: every request has an extent of its own in it."""

    name: DimName
    least: Extent
    most: Extent


class TensorSpec(Message, frozen=True, kw_only=True):
    """Name, dtype and shape of one input or output; the first dimension is the batch, -1.

    An output may also have a leading dimension of its own (`owner`), or fewer elements in each row than its second
    dimension has room for (`count`): as where a model detects things.
    """

    name: Id
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Meta(ge=-1, le=1 << 40)], ...], Meta(max_length=64)]  # open extents are -1
    dims: Annotated[tuple[DimName, ...], Meta(max_length=63)] = ()  # name of each dimension after the batch; "": none
    pad: Annotated[float, Meta(ge=-1e18, le=1e18)] = 0.0  # of an input: what its open dimensions are filled up with
    owner: Id = ""  # of an output: an int64 output [n] that tells for each of its n elements the row it belongs to
    count: Id = ""  # of an output [batch, most, ...]: an int64 output [batch] that tells how many of a row's are there


Batch = Annotated[int, Meta(ge=1, le=1 << 20)]  # rows
Specs = Annotated[tuple[TensorSpec, ...], Meta(max_length=TENSORS_MAX)]
Labels = Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=LISTED_MAX)]
Times = Annotated[dict[Batch, Duration], Meta(max_length=4096)]  # {batch: seconds}
Positive = Annotated[float, Meta(gt=0, le=1e12)]


class ModelSpec(Message, frozen=True, kw_only=True):
    """What a client may send to one version of a model, and what it gets back."""

    inputs: Specs
    outputs: Specs
    batch_max: Batch  # rows in the largest batch
    slo_ms: Positive  # budget of a request that names none
    cacheable: bool = True
    labels: Labels = ()  # class names of the first output; empty: none
    batch_sizes: Annotated[tuple[Batch, ...], Meta(max_length=4096)] = ()  # sizes that were profiled
    build: Id = ""  # of a container's version: changes when its code may have; older answers are then not reused
    dims: Annotated[tuple[Dim, ...], Meta(max_length=OPEN_MAX)] = ()  # open dimensions; a request's extents follow it
    exact: bool = False  # nothing is padded: only requests of equal extents share a batch

    def fault(self) -> str:
        """Why no model can be so, in a sentence; empty if one can. What is out of range the decoder refuses."""
        names = [dim.name for dim in self.dims]
        if len(set(names)) < len(names) or "" in names or any(dim.least > dim.most for dim in self.dims):
            return "each open dimension has a name of its own, and a least extent that is at most its greatest"
        extents = {dim.name: dim.most for dim in self.dims}
        given = {name for tensor in self.inputs for name in tensor.dims}
        if any(name not in given for name in names):
            return "each open dimension is one of some input"
        for tensor in (*self.inputs, *self.outputs):
            fault = _tensor_fault(tensor, extents, given=tensor in self.inputs, exact=self.exact)
            if fault:
                return fault
        return self._ragged_fault()

    def _ragged_fault(self) -> str:
        """Why rows of an output cannot be told apart by what another output says of its elements; empty if they can."""
        tells = {tensor.name for tensor in self.outputs if tensor.dtype == "int64" and tensor.shape == (-1,)}
        for tensor in self.outputs:
            name = tensor.name[:64]
            if any(other and other not in tells for other in (tensor.owner, tensor.count)):
                return f"what tells of the elements of {name!r} is an int64 output of shape [-1]"
            if tensor.count and (tensor.owner or len(tensor.shape) < 2):
                return f"{name!r}, whose rows count their elements, has a dimension for them, and no owners"
        if any(tensor.owner or tensor.count for tensor in self.inputs):
            return "no input has owners, or counts"
        return ""

    def edition(self, ref: str) -> str:
        """A name of the version and its build: cached answers may be reused while it is equal."""
        return f"{ref}#{self.build}" if self.build else ref


def _tensor_fault(tensor: TensorSpec, extents: dict[str, int], *, given: bool, exact: bool) -> str:
    """Why no tensor can be so; empty if one can. `given`: it is an input. `extents`: the greatest, by dimension."""
    name = tensor.name[:64]
    first, *others = tensor.shape or (0,)
    dims = tensor.dims or ("",) * len(others)
    if first != -1 or len(dims) != len(others):
        return f"the shape of {name!r} begins with -1, the batch, and `dims` names each dimension after it, or none"
    greatest = []
    for extent, dim in zip(others, dims, strict=True):
        if dim and (extent != -1 or dim not in extents):
            return f"the dimension {dim!r} of {name!r} is -1 in its shape, and one of the model's open dimensions"
        if extent == -1 and not dim and (given or not exact):
            return f"the shape of {name!r} begins with -1, the batch, and has no other -1 but named dimensions"
        greatest.append(extents.get(dim, 1) if extent == -1 else extent)
    if tensor.dtype not in VARIABLE and byte_count(tensor.dtype, greatest) > ROW_BYTES_MAX:
        return f"a row of {name!r} takes more than {ROW_BYTES_MAX} bytes"
    return ""


class Batching(Message, frozen=True, kw_only=True):
    """How the batch sizes of a black-box container are chosen."""

    method: Id = "aimd"  # aimd | quantile | fixed | none
    objective_s: Positive = 0.05  # EXEC of a batch should take no longer
    size: Batch = 1  # of `fixed`: the largest batch
    wait_s: Duration = 0.0  # a batch that is not full may wait this long for expected requests


class SizeTimes(Message, frozen=True, kw_only=True):
    """Durations of EXEC with inputs padded to these extents; a batch beyond the largest does not fit in memory."""

    extents: Extents
    exec_s: Annotated[Times, Meta(min_length=1)]  # {batch: median}


class Profile(Message, frozen=True, kw_only=True):
    """Durations of one version of a model on one kind of device, measured there (seconds)."""

    exec_s: Times  # {batch: median EXEC duration}; with open dimensions: of their greatest extents
    load_s: Duration  # median LOAD duration
    exec_p99_s: Times = {}
    engine: Id = ""  # how it was executed: "eager", "compiled", ...
    load_from: Id = "host"  # where that LOAD read the weights from: "host" memory or "disk"
    sizes: Annotated[tuple[SizeTimes, ...], Meta(max_length=4096)] = ()  # by extents, ascending; (): no open dimension


class Heartbeat(Message, frozen=True, kw_only=True, tag="beat"):
    """Either -> either: I am alive. Sent when nothing else was sent for a while."""


class Introduce(Message, frozen=True, kw_only=True, tag="intro"):
    """Listener -> caller: I do not know you (I may have restarted); send your Hello or Register again."""


class Goodbye(Message, frozen=True, kw_only=True, tag="bye"):
    """Either -> either: I am leaving on purpose; expect nothing more."""


Clock = Annotated[float, msgspec.Meta(ge=0.0, le=CLOCK_S_MAX)]  # NaN and infinity are refused as well
Difference = Annotated[float, msgspec.Meta(ge=-CLOCK_S_MAX, le=CLOCK_S_MAX)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
M = TypeVar("M")


Delta = Annotated[float, Meta(ge=-2e12, le=2e12)]


class Envelope(msgspec.Struct, Generic[M], frozen=True, array_like=True, gc=False):
    """Messages of one turn of a service for one peer: all of them, unless their tensors are large."""

    sent_s: Clock  # sender's clock, just before the send
    delta_s: Difference | None  # smallest (receipt here - sent there) that the sender saw on this link: see clocks.py
    epoch: Epoch  # shard epoch of a controller; 0 from other services
    messages: list[M]
