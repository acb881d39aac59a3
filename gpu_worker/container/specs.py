"""What a container is told to serve: its options, and their faults. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpu_worker.container.child.declaring import NotDeclared, spec_of
from mesh import wire
from mesh.errors import GearmeshError
from mesh.names import NAME, VERSION

ROWS_MAX = 4096
METHODS = ("aimd", "quantile", "none")
PAIR = re.compile(r"([^=:\s]+)=(\S+)")
Tensor = dict[str, Any]  # {"name", "dtype", "shape"}; dtype and shape are None where a sample has to show them
Value = TypeVar("Value")


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
    declared: Mapping[str, Any] = field(
        default_factory=dict
    )  # of open dimensions: "dims", "pad", "exact", ... if given

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
    """Returns a tensor from NAME:DTYPE:SHAPE, as in x:float32:-1,64, or NAME alone. Raises: ContainerError."""
    try:
        return spec_of(text, option)
    except NotDeclared as error:
        raise ContainerError(str(error)) from error


def parse_declared(
    dims: Sequence[str] = (), pads: Sequence[str] = (), owners: Sequence[str] = (), counts: Sequence[str] = (),
    *, exact: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Returns what is given of open dimensions, as `ContainerOptions.declared` has it. Raises: ContainerError."""
    found: dict[str, Any] = {
        "dims": _pairs(dims, "--dim", "seq=1:512, or seq=512", _extents),
        "pad": _pairs(pads, "--pad", "ids=0", _number),
        "owner": _pairs(owners, "--owner", "boxes=rows", str),
        "count": _pairs(counts, "--count", "boxes=found", str),
        "exact": exact,
    }
    return {key: value for key, value in found.items() if value}


def _pairs(texts: Sequence[str], option: str, example: str, read: Callable[[str], Value]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for text in texts:
        pair = PAIR.fullmatch(text)
        try:
            if pair is None or pair.group(1) in found:
                raise ValueError
            found[pair.group(1)] = read(pair.group(2))
        except ValueError:
            why = "once for each name" if pair is not None and pair.group(1) in found else f"NAME=..., as in {example}"
            raise ContainerError(f"{option} takes {why}; got {text!r}") from None
    return found


def _extents(text: str) -> list[int]:
    least, colon, most = text.partition(":")
    return [int(least), int(most)] if colon else [1, int(least)]


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number
