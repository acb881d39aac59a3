"""Checks the arguments for writing a model, before anything is run. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_worker.packages.batches import ROWS
from gpu_worker.packages.declared import BATCH_BYTES_MAX, BATCH_MAX, TENSORS_MAX, dims_of
from gpu_worker.packages.importing.signature import check_names
from gpu_worker.packages.opening import dims_faults, known_dims, pad_fault, sizes, unused_faults
from gpu_worker.packages.sizing import Sizing
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.names import NAME, VERSION
from mesh.tensors import DTYPES, VARIABLE, byte_count

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

    def spec(self, sizing: Sizing, outputs: Sequence[wire.TensorSpec]) -> wire.ModelSpec:
        """Returns the spec of a model with these options, inputs and outputs."""
        return wire.ModelSpec(
            inputs=sizing.inputs, outputs=tuple(outputs), batch_max=self.batch_max, slo_ms=self.slo_ms,
            cacheable=self.cache, labels=tuple(self.labels), dims=sizing.dims, exact=sizing.exact,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Opening:
    """What is said of open dimensions, and of outputs that tell rows apart."""

    dims: Mapping[str, tuple[int, int]]  # {name: (least, most)}
    pad: Mapping[str, float]  # {input: what its open dimensions are filled up with}
    exact: bool
    rows: Mapping[str, str]  # {output: the output that tells its rows}

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, without regard to the inputs."""
        faults = dims_faults(self.dims)
        if not isinstance(self.exact, bool):
            faults.append(f"exact must be True or False; got {self.exact!r}")
        elif self.exact and not self.dims:
            faults.append("exact: there are no dims that could be filled up; leave it out")
        elif self.exact and self.pad:
            faults.append("pad: with exact=True nothing is filled up; leave one of them out")
        if not isinstance(self.rows, Mapping) or not all(
            isinstance(name, str) and isinstance(by, str) for name, by in self.rows.items()
        ):
            faults.append(
                f'rows must be {{output: output that tells its rows}}, as {{"boxes": "owner"}}; got {self.rows!r}'
            )
        return faults

    def pad_faults(self, inputs: Mapping[str, Any]) -> list[str]:
        """Returns what is wrong with `pad` for these inputs."""
        if not isinstance(self.pad, Mapping):
            return [f'pad must be {{input: number}}, as {{"ids": 0}}; got {self.pad!r}']
        faults = []
        for name, value in self.pad.items():
            if name not in inputs:
                faults.append(f"pad names {name!r}; the inputs are {', '.join(map(str, inputs))}")
                continue
            dtype, shape = inputs[name]
            is_open = is_list(shape) and any(isinstance(extent, str) for extent in shape)
            fault = pad_fault(value, dtype if isinstance(dtype, str) else "", is_open)
            faults += [f"input {name!r}: {fault}"] if fault else []
        return faults

    def sizing(self, inputs: Mapping[str, tuple[str, Sequence[int | str]]]) -> Sizing:
        """Returns the inputs with their open dimensions; both have no fault."""
        specs = tuple(
            wire.TensorSpec(
                name=name,
                dtype=dtype,
                shape=(-1, *(-1 if isinstance(extent, str) else extent for extent in shape)),
                dims=dims_of(shape),
                pad=float(self.pad.get(name, 0.0)),
            )
            for name, (dtype, shape) in inputs.items()
        )
        dims = tuple(wire.Dim(name=name, least=low, most=high) for name, (low, high) in self.dims.items())
        return Sizing(specs, dims, self.exact)


def opening_of(dims: Any, pad: Any, exact: Any, rows: Any) -> Opening:
    """Returns what was given; None is nothing."""
    return Opening({} if dims is None else dims, {} if pad is None else pad, exact, {} if rows is None else rows)


def check(
    place: str,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    outputs: Sequence[str] | None,
    options: PackageOptions,
    opening: Opening,
) -> Sizing:
    """Returns the inputs as clients see them, and their open dimensions.

    Raises: PackageError, code bad_argument or bad_names, with everything that is wrong.
    """
    faults = options.faults + opening.faults
    if outputs is not None and not is_list(outputs):
        faults.append(f'outputs must be a list of names, as ["scores"]; got {outputs!r}')
    faults += _inputs_faults(inputs, options.batch_max, opening)
    if faults:
        raise PackageError(printable(place), faults, PackageCode.BAD_ARGUMENT)
    check_names(place, "inputs", list(inputs))
    check_names(place, "outputs", outputs or ())
    return opening.sizing(inputs)


def check_inputs(
    place: str, inputs: Mapping[str, tuple[str, Sequence[int | str]]], batch_max: int, opening: Opening
) -> Sizing:
    """Returns the inputs that a file has as clients see them, and their open dimensions. Raises: as `check`."""
    faults = _inputs_faults(inputs, batch_max, opening)
    if faults:
        raise PackageError(printable(place), faults, PackageCode.BAD_ARGUMENT)
    check_names(place, "inputs", list(inputs))
    return opening.sizing(inputs)


def _inputs_faults(inputs: object, batch_max: int, opening: Opening) -> list[str]:
    if not isinstance(inputs, Mapping):
        return [f"inputs must be {{name: (dtype, shape of one row)}}, as {EXAMPLE}; got {inputs!r}"]
    if not 1 <= len(inputs) <= TENSORS_MAX:
        return [f"inputs must have 1 to {TENSORS_MAX} tensors; got {len(inputs)}"]
    found = (_input_fault(name, about, batch_max, opening.dims) for name, about in inputs.items())
    faults = [fault for fault in found if fault]
    shapes = [about[1] for about in inputs.values() if _is_pair(about) and is_list(about[1])]
    faults += unused_faults(opening.dims, shapes)
    return faults + opening.pad_faults({name: about for name, about in inputs.items() if _is_pair(about)})


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


def _is_pair(about: object) -> bool:
    return isinstance(about, (tuple, list)) and len(about) == 2


def _input_fault(name: object, about: Any, batch_max: int, dims: object) -> str:
    if not _is_pair(about):
        return f"input {name!r} must be (dtype, shape of one row), as in {EXAMPLE}; got {about!r}"
    dtype, shape = about
    if isinstance(dtype, str) and dtype in VARIABLE:
        return (
            f"input {name!r}: a graph takes no {dtype}; serve the function as a container, which takes text and bytes "
            "(docs/containers.md), or give numbers, as the ids of a tokeniser"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"input {name!r}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}"
    if not is_list(shape) or not all(isinstance(e, str) or (_is_number(e, int) and e > 0) for e in shape):
        return (
            f"input {name!r}: shape must be the positive extents of one row, without the batch, or names of dims; got "
            f"{shape!r}"
        )
    known = known_dims(dims)
    named = [extent for extent in shape if isinstance(extent, str)]
    strange = [extent for extent in named if not isinstance(dims, Mapping) or extent not in dims]
    if strange:
        wanted = f'dims={{"{strange[0]}": (1, 512)}}'
        return f"input {name!r}: dims says nothing of {', '.join(strange)}: give its least and most, as {wanted}"
    if len(set(named)) < len(named):
        return f"input {name!r}: {named[0]} is two of its dimensions: give each a name of its own"
    if any(extent not in known for extent in named):
        return ""
    rows = max(batch_max, ROWS) if _is_number(batch_max, int) else ROWS
    for count, most in ((rows, False), *([(1, True)] if named else [])):
        size = byte_count(dtype, sizes(shape, known, most))
        if size * count > BATCH_BYTES_MAX:
            return (
                f"input {name!r}: {count} rows of {size} bytes are {size * count} bytes, and a model is tried with at "
                f"most {BATCH_BYTES_MAX} at once: is the shape right? If so, give a smaller "
                f"{'most extent' if most else 'batch_max'}"
            )
    return ""
