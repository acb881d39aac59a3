"""Checks the arguments for writing a model, before anything is run. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_worker.packages.declared import BATCH_BYTES_MAX, BATCH_MAX, TENSORS_MAX
from gpu_worker.packages.importing.signature import check_names
from gpu_worker.packages.trials import ROWS
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES, byte_count

SLO_MS_MAX = 600_000
EXAMPLE = '{"x": ("float32", (64,))}'


@dataclass(frozen=True, slots=True)
class PackageOptions:
    """The options that every kind of model has."""

    name: str
    version: str
    batch_max: int
    slo_ms: float
    labels: Sequence[str]
    cache: bool
    description: str

    @property
    def faults(self) -> list[str]:
        """What is wrong with the options; empty if nothing is."""
        faults = []
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            faults.append(f"name must match {NAME.pattern}; got {self.name!r}")
        if not isinstance(self.version, str) or not VERSION.fullmatch(self.version):
            faults.append(f'version is a number in digits, as "1"; got {self.version!r}')
        if not _is_number(self.batch_max, int) or not 1 <= self.batch_max <= BATCH_MAX:
            faults.append(f"batch_max must be a number from 1 to {BATCH_MAX}; got {self.batch_max!r}")
        if not _is_number(self.slo_ms, int, float) or not 0 < self.slo_ms <= SLO_MS_MAX:
            faults.append(f"slo_ms must be a number above 0 and at most {SLO_MS_MAX}; got {self.slo_ms!r}")
        if not is_list(self.labels) or not all(isinstance(label, str) and can_travel(label) for label in self.labels):
            faults.append(f"labels must be a list of strings; got {self.labels!r}")
        if not isinstance(self.cache, bool):
            faults.append(f"cache must be True or False; got {self.cache!r}")
        if not isinstance(self.description, str) or not can_travel(self.description):
            faults.append(f"description must be a string, of characters that UTF-8 has; got {self.description!r}")
        return faults


def check(
    place: str, inputs: Mapping[str, tuple[str, Sequence[int]]], outputs: Sequence[str] | None, options: PackageOptions
) -> tuple[wire.TensorSpec, ...]:
    """Returns the inputs as clients see them.

    Raises: PackageError, code bad_argument or bad_names, with everything that is wrong.
    """
    faults = options.faults
    if outputs is not None and not is_list(outputs):
        faults.append(f'outputs must be a list of names, as ["scores"]; got {outputs!r}')
    if not isinstance(inputs, Mapping):
        faults.append(f"inputs must be {{name: (dtype, shape of one row)}}, as {EXAMPLE}; got {inputs!r}")
    elif not 1 <= len(inputs) <= TENSORS_MAX:
        faults.append(f"inputs must have 1 to {TENSORS_MAX} tensors; got {len(inputs)}")
    else:
        faults += [fault for name, about in inputs.items() if (fault := _input_fault(name, about, options.batch_max))]
    if faults:
        raise PackageError(printable(place), faults, PackageCode.BAD_ARGUMENT)
    check_names(place, "inputs", list(inputs))
    check_names(place, "outputs", outputs or ())
    return tuple(wire.TensorSpec(name=name, dtype=dtype, shape=(-1, *shape)) for name, (dtype, shape) in inputs.items())


def is_list(value: object) -> bool:
    """Returns whether the value is a sequence other than text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def can_travel(text: str) -> bool:
    """Returns whether the text can be encoded as UTF-8; Python strings may hold lone surrogates, which cannot."""
    return printable(text) == text


def printable(text: str) -> str:
    """Returns the text, with ? for characters that UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _input_fault(name: object, about: object, batch_max: int) -> str:
    if not isinstance(about, (tuple, list)) or len(about) != 2:
        return f"input {name!r} must be (dtype, shape of one row), as in {EXAMPLE}; got {about!r}"
    dtype, shape = about
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"input {name!r}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}"
    if not is_list(shape) or not all(_is_number(extent, int) and extent > 0 for extent in shape):
        return f"input {name!r}: shape must be the positive extents of one row, without the batch; got {shape!r}"
    size, rows = byte_count(dtype, shape), max(batch_max, ROWS) if _is_number(batch_max, int) else ROWS
    if size * rows > BATCH_BYTES_MAX:
        return (
            f"input {name!r}: {rows} rows of {size} bytes are {size * rows} bytes, and a model is tried with at most "
            f"{BATCH_BYTES_MAX} at once: is the shape right? If so, give a smaller batch_max"
        )
    return ""
