"""Message and envelope, the messages of any link, and the parts that several messages are made of."""

from typing import Annotated, Generic, TypeVar

import msgspec

Buffer = bytes | memoryview  # a tensor's bytes, in a frame of their own
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

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelSpec(Message, frozen=True, kw_only=True):
    """What a client may send to one version of a model, and what it gets back."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_max: int  # rows in the largest batch
    slo_ms: float  # budget of a request that names none
    cacheable: bool = True
    labels: tuple[str, ...] = ()  # class names of the first output; empty: none
    batch_sizes: tuple[int, ...] = ()  # sizes that were profiled
    build: str = ""  # of a container's version: changes when its code may have; older answers are then not reused

    def edition(self, ref: str) -> str:
        """A name of the version and its build: cached answers may be reused while it is equal."""
        return f"{ref}#{self.build}" if self.build else ref


class Batching(Message, frozen=True, kw_only=True):
    """How the batch sizes of a black-box container are chosen."""

    method: str = "aimd"  # aimd | quantile | fixed | none
    objective_s: float = 0.05  # EXEC of a batch should take no longer
    size: int = 1  # of `fixed`: the largest batch
    wait_s: float = 0.0  # a batch that is not full may wait this long for expected requests


class Profile(Message, frozen=True, kw_only=True):
    """Durations of one version of a model on one kind of device, measured there (seconds)."""

    exec_s: dict[int, float]  # {batch: median EXEC duration}
    load_s: float  # median LOAD duration
    exec_p99_s: dict[int, float] = {}
    engine: str = ""  # how it was executed: "eager", "compiled", ...
    load_from: str = "host"  # where that LOAD read the weights from: "host" memory or "disk"


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


class Envelope(msgspec.Struct, Generic[M], frozen=True, array_like=True, gc=False):
    """All messages of one turn of a service for one peer."""

    sent_s: Clock  # sender's clock, just before the send
    delta_s: Difference | None  # smallest (receipt here - sent there) that the sender saw on this link: see clocks.py
    epoch: Epoch  # shard epoch of a controller; 0 from other services
    messages: list[M]
