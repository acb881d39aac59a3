"""Message and envelope, the messages of any link, and the parts that several messages are made of."""

from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from mesh.tensors import byte_count
from mesh.wire.ranges import LISTED_MAX, TENSORS_MAX, Dtype, Duration, Id

Buffer = bytes | memoryview  # a tensor's bytes, in a frame of their own
ROW_BYTES_MAX = 1 << 40  # of one tensor
CLOCK_S_MAX = 1e10  # of a monotonic clock: 300 years
INLINE_BYTES_MAX = 32 * 1024  # larger tensors travel as frames of their own, so that the codec never copies them


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """A message between two services."""


def ref_of(name: str, version: str) -> str:
    """The ref of one version of a model."""
    return f"{name}:{version}"


def split_ref(ref: str) -> tuple[str, str]:
    """(name, version) of a ref."""
    name, _, version = ref.rpartition(":")
    return name, version


class TensorSpec(Message, frozen=True, kw_only=True):
    """Name, dtype and shape of one input or output; the first dimension is the batch, -1."""

    name: Id
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Meta(ge=-1, le=1 << 40)], ...], Meta(max_length=64)]


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

    def fault(self) -> str:
        """Why no model can be so, in a sentence; empty if one can. What is out of range the decoder refuses."""
        for tensor in (*self.inputs, *self.outputs):
            first, *others = tensor.shape or (0,)
            if first != -1 or min(others, default=0) < 0:
                return f"the shape of {tensor.name[:64]!r} begins with -1, the batch, and has no other -1"
            if byte_count(tensor.dtype, others) > ROW_BYTES_MAX:
                return f"a row of {tensor.name[:64]!r} takes more than {ROW_BYTES_MAX} bytes"
        return ""

    def edition(self, ref: str) -> str:
        """A name of the version and its build: cached answers may be reused while it is equal."""
        return f"{ref}#{self.build}" if self.build else ref


class Batching(Message, frozen=True, kw_only=True):
    """How the batch sizes of a black-box container are chosen."""

    method: Id = "aimd"  # aimd | quantile | fixed | none
    objective_s: Positive = 0.05  # EXEC of a batch should take no longer
    size: Batch = 1  # of `fixed`: the largest batch
    wait_s: Duration = 0.0  # a batch that is not full may wait this long for expected requests


class Profile(Message, frozen=True, kw_only=True):
    """Durations of one version of a model on one kind of device, measured there (seconds)."""

    exec_s: Times  # {batch: median EXEC duration}
    load_s: Duration  # median LOAD duration
    exec_p99_s: Times = {}
    engine: Id = ""  # how it was executed: "eager", "compiled", ...
    load_from: Id = "host"  # where that LOAD read the weights from: "host" memory or "disk"


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
    """All messages of one turn of a service for one peer."""

    sent_s: Clock  # sender's clock, just before the send
    delta_s: Difference | None  # smallest (receipt here - sent there) that the sender saw on this link: see clocks.py
    epoch: Epoch  # shard epoch of a controller; 0 from other services
    messages: list[M]
