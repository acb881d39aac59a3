"""What a container is told to serve: its checked options, and the layout of tensors in shared memory. Pure."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh import wire
from mesh.errors import GearmeshError
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES, byte_count

ALIGNMENT = 64  # bytes: a cache line
SLOTS = 3  # batches that share memory with the child: one running, one ready behind it, one being answered
SLOT_BYTES_MAX = 1 << 30
ROWS_MAX = 4096
METHODS = ("aimd", "quantile", "none")
SPEC = re.compile(r"([A-Za-z0-9_.-]{1,64}):([a-z0-9]+):(-1(?:,\d+)*)")
Tensor = dict[str, Any]  # {"name", "dtype", "shape"} and, once laid out, "at"


class ContainerError(GearmeshError):
    """A container cannot be served; `str()` names the option, or holds the code's traceback."""


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """The operator's options. If `inputs` or `outputs` is None, the code determines them."""

    model: str
    predict: str  # module:function
    python: str  # interpreter of the child
    version: str | None = None  # None: the number that the code had before, or the next one
    labels: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] | None = None
    outputs: tuple[Tensor, ...] | None = None
    sample: Path | None = None  # the operator's own inputs, run once at the start
    slo_ms: float = 1000.0
    objective_ms: float | None = None  # for one batch; None: half of slo_ms
    batching: str = "aimd"  # aimd | quantile | none | fixed:N
    batch_wait_ms: float = 0.0
    batch_max: int = 1024
    memory_mb: int = 0  # above it the child is restarted; 0: half of the machine's memory
    cache: bool = True

    @property
    def ref(self) -> str:
        """The ref that is served; the model's name as long as the version is unknown."""
        return wire.ref_of(self.model, self.version) if self.version is not None else self.model

    def check(self) -> None:
        """The options are valid. Raises: ContainerError with everything that is wrong."""
        method, _, size = self.batching.partition(":")
        faults = []
        if not NAME.fullmatch(self.model):
            faults.append(f"--model must match {NAME.pattern}; got {self.model!r}")
        if self.version is not None and not VERSION.fullmatch(self.version):
            faults.append(f"--version is a number in digits; got {self.version!r}")
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.predict):
            faults.append(f"--predict takes MODULE:FUNCTION, as in my_model:predict; got {self.predict!r}")
        if self.batching not in METHODS and not (method == "fixed" and size.isdecimal() and 1 <= int(size) <= ROWS_MAX):
            faults.append(f"--batching is aimd, quantile, none or fixed:N (1 to {ROWS_MAX}); got {self.batching!r}")
        for name, value in (("slo-ms", self.slo_ms), ("objective-ms", self.objective_ms)):
            if value is not None and not 0 < value <= 600_000:
                faults.append(f"--{name} must be between 0 and 600000; got {value:g}")
        if not 0 <= self.batch_wait_ms <= 1000:
            faults.append(f"--batch-wait-ms must be between 0 and 1000; got {self.batch_wait_ms:g}")
        if not 1 <= self.batch_max <= ROWS_MAX:
            faults.append(f"--batch-max must be between 1 and {ROWS_MAX}; got {self.batch_max}")
        if self.memory_mb < 0:
            faults.append(f"--memory-mb must not be negative; got {self.memory_mb}")
        if self.sample is not None and not self.sample.is_file():
            faults.append(f"--sample {self.sample}: there is no such file")
        if faults:
            raise ContainerError("wrong options:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def wording(self) -> wire.Batching:
        """Returns the batching as it is sent to the controller."""
        method, _, size = self.batching.partition(":")
        objective_ms = self.slo_ms / 2 if self.objective_ms is None else self.objective_ms
        return wire.Batching(
            method=method, objective_s=objective_ms / 1e3, size=int(size or 1), wait_s=self.batch_wait_ms / 1e3
        )


def parse_tensor(text: str, option: str) -> Tensor:
    """Returns a tensor from NAME:DTYPE:SHAPE, as in x:float32:-1,64. Raises: ContainerError."""
    found = SPEC.fullmatch(text)
    if found is None:
        raise ContainerError(
            f"{option} takes NAME:DTYPE:SHAPE with the batch first, as in x:float32:-1,64; got {text!r}"
        )
    name, dtype, shape = found.groups()
    return {"name": name, "dtype": dtype, "shape": [int(extent) for extent in shape.split(",")]}


def model_spec(options: ContainerOptions, inputs: Any, outputs: Any) -> wire.ModelSpec:
    """Returns the spec that clients see. Raises: ContainerError."""
    for kind, tensors in (("input", inputs), ("output", outputs)):
        if not tensors:
            raise ContainerError(
                f"{options.predict} does not say what its {kind}s are: give --{kind} NAME:DTYPE:SHAPE for each, "
                f"or --sample FILE.npy with inputs to show it"
            )
        for tensor in tensors:
            _check_tensor(kind, tensor)
        names = [tensor["name"] for tensor in tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ContainerError(f"{kind} {twice} is declared more than once; each has a name of its own")
    return wire.ModelSpec(
        inputs=tuple(_tensor(tensor) for tensor in inputs),
        outputs=tuple(_tensor(tensor) for tensor in outputs),
        batch_max=options.batch_max,
        slo_ms=options.slo_ms,
        cacheable=options.cache,
        labels=options.labels,
    )


def content_of(code: str, spec: wire.ModelSpec) -> str:
    """Returns the digest of a container version's content: code, inputs, outputs and labels, not how it is served."""
    made_of = msgspec.json.encode([code, spec.inputs, spec.outputs, spec.labels])
    return hashlib.sha256(made_of).hexdigest()[:32]


def _check_tensor(kind: str, tensor: Tensor) -> None:
    shape, dtype = tensor["shape"], tensor["dtype"]
    if dtype not in DTYPES:
        raise ContainerError(f"{kind} {tensor['name']}: dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if not shape or shape[0] != -1 or not all(isinstance(extent, int) and extent > 0 for extent in shape[1:]):
        raise ContainerError(
            f"{kind} {tensor['name']}: shape must be -1 for the batch and then positive numbers; got {shape}: "
            f"declare it with --{kind} {tensor['name']}:{dtype}:-1,..."
        )


def _tensor(tensor: Tensor) -> wire.TensorSpec:
    return wire.TensorSpec(name=tensor["name"], dtype=tensor["dtype"], shape=tuple(tensor["shape"]))


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Where the tensors of one batch are in a slot, and the size of a slot in bytes."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    slot_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots."""
        return self.slot_bytes * SLOTS


def lay_out(spec: wire.ModelSpec) -> SlotLayout:
    """Returns a layout in which every tensor has room for the largest batch. Raises: ContainerError.

    Unused parts of a slot are never touched, so they take no memory.
    """
    at = 0
    placed: list[list[Tensor]] = [[], []]
    for group, tensors in zip(placed, (spec.inputs, spec.outputs), strict=True):
        for tensor in tensors:
            group.append({"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "at": at})
            size = byte_count(tensor.dtype, (spec.batch_max, *tensor.shape[1:]))
            at += -(-size // ALIGNMENT) * ALIGNMENT
    slot_bytes = -(-at // 4096) * 4096
    if slot_bytes > SLOT_BYTES_MAX:
        fits = spec.batch_max * SLOT_BYTES_MAX // slot_bytes
        raise ContainerError(
            f"a batch of {spec.batch_max} rows takes {slot_bytes >> 20} MiB, more than {SLOT_BYTES_MAX >> 20}: "
            f"give --batch-max {max(1, fits)}"
        )
    return SlotLayout(tuple(placed[0]), tuple(placed[1]), slot_bytes)
