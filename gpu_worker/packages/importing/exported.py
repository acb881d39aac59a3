"""Reads FILE.pt2 of torch.export.save as a module: the graph and the tensors as data, and no pickle of the file.

Weights and constants are raw bytes in the file, which two JSON texts describe. Example inputs are a pickle: they are
not read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from gpu_worker.devices.execution.building import DTYPES, build
from gpu_worker.packages.declared import MANIFEST_BYTES_MAX
from gpu_worker.packages.examples import message_of
from gpu_worker.packages.importing.structures import filled, read_structure
from gpu_worker.packages.reading.archives import (
    ARCHIVE_BYTES_MAX,
    EXPORTED,
    GRAPH_BYTES_MAX,
    MODEL,
    Archive,
    UnsafeArchive,
)
from gpu_worker.packages.reading.graphs import UnsafeProgram, check_program
from gpu_worker.packages.reading.serialized import (
    StoredExtent,
    StoredInput,
    StoredOutput,
    StoredProgram,
    StoredRange,
    StoredTensor,
    TooLarge,
    decode,
    decode_payloads,
)
from mesh.codes import PackageCode
from mesh.errors import PackageError

CONFIGS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
TRACED_BYTES_MAX = 4 * GRAPH_BYTES_MAX  # of a graph that holds its author's stack for each operation
CONFIG_BYTES_MAX = 16 * MANIFEST_BYTES_MAX
NAMES = ("seq", "width", "depth", "more")  # that are proposed for open dimensions
LEAST = 2  # rows: torch's lower bound where the author gave none; such programs also take one row
SYMBOL = re.compile(r"(?:Symbol\('(\w+)'[\w\s,=]*\)|(\w+))", re.ASCII)
# {name: (dtype, shape of one row, with the names of open dimensions)}
Inputs = dict[str, tuple[str, tuple[int | str, ...]]]
Dims = Mapping[str, tuple[int, int]]  # {open dimension: (least, most)}, in the order in which the inputs have them


def read_program(place: str, file: Path, batch_max: int, dims: Dims | None = None) -> tuple[nn.Module, Inputs]:
    """Returns (module, inputs) of a file written by torch.export.save; nothing in it is run.

    `dims`: a name and a range for each dimension that is open beside the batch, which the file has no names for.

    Raises: PackageError, code bad_source, unsafe_package, bad_inputs or batch_fixed.
    """
    try:
        with Archive(file, EXPORTED) as archive:
            program = decode(archive.read(MODEL, TRACED_BYTES_MAX))
            check_program(program)
            module = Exported(program, _tensors(archive))
    except (UnsafeArchive, UnsafeProgram, TooLarge) as error:
        raise PackageError(place, [f"{error} ({ADVICE})"], PackageCode.UNSAFE_PACKAGE) from None
    except Exception as error:  # torch may raise anything of what fits not together
        why = f"is no program that torch.export.save wrote: {message_of(error)}"
        raise PackageError(place, [why], PackageCode.BAD_SOURCE) from None
    graph, inputs, faults = program.graph_module.graph, Inputs(), list[str]()
    for name in module.inputs:
        value = graph.tensor_values.get(name)
        fault = _input_fault(name, value, program.range_constraints, batch_max)
        if fault:
            faults.append(fault)
        elif value is not None:
            rest = tuple(_symbol(extent) or _number(extent) for extent in value.sizes[1:])
            inputs[name] = (str(DTYPES[value.dtype]).removeprefix("torch."), rest)
    if faults:
        raise PackageError(place, faults, PackageCode.BATCH_FIXED)
    return module, _named(place, inputs, program.range_constraints, dims or {})


def _named(place: str, inputs: Inputs, ranges: Mapping[str, StoredRange], dims: Dims) -> Inputs:
    """Returns the inputs with the names of `dims` in place of the file's symbols. Raises: PackageError."""
    symbols = list(dict.fromkeys(extent for _, row in inputs.values() for extent in row if isinstance(extent, str)))
    if len(symbols) != len(dims):
        spans = [ranges.get(symbol, StoredRange()) for symbol in symbols]
        listed = "; ".join(f"{name} is [{', '.join(map(str, ('batch', *row)))}]" for name, (_, row) in inputs.items())
        wanted = " ".join(f"--dim {n}={s.min_val or 1}:{s.max_val or 512}" for n, s in zip(NAMES, spans, strict=False))
        why = (
            f"{len(symbols)} dimensions of its inputs are open beside the batch ({listed}), and dims names {len(dims)}"
        )
        mend = f"give each a name and a range, in this order, as {wanted}" if symbols else "leave dims out"
        raise PackageError(place, [f"{why}: {mend}"], PackageCode.BAD_INPUTS)
    called, faults = dict(zip(symbols, dims, strict=True)), []
    for symbol, name in called.items():
        span, (least, most) = ranges.get(symbol, StoredRange()), dims[name]
        low, high = span.min_val if (span.min_val or 0) > LEAST else None, span.max_val
        if (low is not None and least < low) or (high is not None and most > high):
            faults.append(f"dims {name} is {least} to {most}; the program takes {low or 1} to {high or 'any'}")
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_INPUTS)
    return {
        name: (dtype, tuple(called[extent] if isinstance(extent, str) else extent for extent in row))
        for name, (dtype, row) in inputs.items()
    }


class Exported(nn.Module):
    """An exported program that takes its inputs by position. Its tensors are in `program`, under their own names."""

    def __init__(self, program: StoredProgram, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises: ValueError, and what torch raises of names and dtypes."""
        super().__init__()
        whole = program.graph_module
        names = [given.only()[1] for given in whole.graph.inputs]
        specs = [_taken(spec) for spec in whole.signature.input_specs]
        self.inputs = [_name(value, i) for i, (value, spec) in enumerate(zip(names, specs, strict=True)) if not spec]
        self.program = nn.Module()
        for name in dict.fromkeys(filter(None, specs)):
            if name not in tensors:
                raise ValueError(f"the file has no tensor {name}, which its graph takes")
            _put(self.program, name, tensors[name])
        self._specs = specs
        self._goes = [_made(spec) for spec in whole.signature.output_specs]  # (where, name)
        self._structure = read_structure(whole.module_call_graph[0].signature.out_spec)  # type: ignore[union-attr]
        self._computed = build(program)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Returns what the program returns, in its structure. What it writes to its tensors and inputs is written."""
        given = iter(inputs)
        outputs = self._computed(*(self._tensor(name) if name else next(given) for name in self._specs))
        returned = []
        for (where, name), output in zip(self._goes, outputs, strict=True):
            if where == "user_output":
                returned.append(output)
            else:
                written = inputs[self.inputs.index(name)] if where == "user_input_mutation" else self._tensor(name)
                written.copy_(output)
        return filled(self._structure, returned)

    def _tensor(self, name: str) -> torch.Tensor:
        found: Any = self.program
        for part in name.split("."):
            found = getattr(found, part)
        assert isinstance(found, torch.Tensor)
        return found


def _name(value: Any, i: int) -> str:
    """Returns the name of an input; of one that is no tensor, its place."""
    return str(getattr(value, "name", i))


def _taken(spec: StoredInput) -> str:
    """Returns the tensor that an input of the graph is; "" for an input of the program. Raises: ValueError."""
    if spec.parameter is not msgspec.UNSET:
        return spec.parameter.parameter_name
    if spec.buffer is not msgspec.UNSET:
        return spec.buffer.buffer_name
    if spec.tensor_constant is not msgspec.UNSET:
        return spec.tensor_constant.tensor_constant_name
    if spec.user_input is msgspec.UNSET:
        raise ValueError("its graph takes what is no tensor: export the program with tensors alone as inputs")
    return ""


def _made(spec: StoredOutput) -> tuple[str, str]:
    """Returns (where an output of the graph goes, the name of what it is written to). Raises: ValueError."""
    if spec.buffer_mutation is not msgspec.UNSET:
        return "buffer_mutation", spec.buffer_mutation.buffer_name
    if spec.parameter_mutation is not msgspec.UNSET:
        return "parameter_mutation", spec.parameter_mutation.parameter_name
    if spec.user_input_mutation is not msgspec.UNSET:
        return "user_input_mutation", spec.user_input_mutation.user_input_name
    if spec.user_output is msgspec.UNSET:
        raise ValueError("its graph has outputs of training: export it in evaluation mode")
    return "user_output", ""


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """The tensor is in the module, under this name with dots. Raises: KeyError."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)


def _tensors(archive: Archive) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of all weights and constants. Raises: ValueError; OSError."""
    found: dict[str, torch.Tensor] = {}
    for folder, config in CONFIGS.items():
        data: dict[str, bytearray] = {}  # {entry: its bytes}; tensors may share one
        for name, payload in decode_payloads(archive.read(config, CONFIG_BYTES_MAX)).items():
            if payload.use_pickle or payload.tensor_meta is None:
                raise UnsafeArchive(f"holds {name} as a pickle, which could run code")
            if payload.path_name not in data:
                data[payload.path_name] = bytearray(archive.read(folder + payload.path_name, ARCHIVE_BYTES_MAX))
            tensor = _tensor(name, payload.tensor_meta, data[payload.path_name])
            found[name] = nn.Parameter(tensor, requires_grad=False) if payload.is_param else tensor
    return found


def _tensor(name: str, meta: StoredTensor, data: bytearray) -> torch.Tensor:
    """Returns a tensor on these bytes. Raises: ValueError unless it lies within them; KeyError for its dtype."""
    dtype = DTYPES[meta.dtype]
    sizes, strides = ([_number(extent) for extent in extents] for extents in (meta.sizes, meta.strides))
    offset = _number(meta.storage_offset)
    if len(sizes) != len(strides):
        raise ValueError(f"{name}: {len(sizes)} extents, {len(strides)} strides")
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if len(data) % dtype.itemsize or last >= len(data) // dtype.itemsize:
        raise ValueError(f"{name}: {sizes} of {dtype} with strides {strides} is not within its {len(data)} bytes")
    return torch.frombuffer(data, dtype=dtype).as_strided(sizes, strides, offset)


def _number(extent: StoredExtent) -> int:
    """Returns the extent. Raises: ValueError if it is open, or negative."""
    if extent.as_int is msgspec.UNSET or extent.as_int < 0:
        raise ValueError("a weight has no shape of its own")
    return extent.as_int


def _input_fault(name: str, value: StoredTensor | None, ranges: Mapping[str, StoredRange], batch_max: int) -> str:
    """Returns why the program cannot be served with this input; empty if it can."""
    if value is None:
        return f"input {name} is no tensor: export the program with tensors alone as inputs"
    shape = [extent.as_int if extent.as_int is not msgspec.UNSET else None for extent in value.sizes]
    own = [_symbol(extent) for extent in value.sizes]
    told = [symbol or ("computed" if extent is None else extent) for extent, symbol in zip(shape, own, strict=True)]
    if not shape:
        return f"input {name} has no dimensions, and its first must be the batch"
    if "computed" in told[1:]:
        return f"input {name} is {told}: an open dimension must be one of its own, not computed from others"
    if own[0] and own[0] in own[1:]:
        return f"input {name} is {told}: a dimension beside the batch has the extent of the batch"
    if shape[0] is not None:
        if (shape[0], batch_max) == (1, 1):
            return ""
        return (
            f"input {name} takes {shape[0]} rows, no more and no fewer: export the program with a first dimension that "
            "is free (dynamic_shapes={...: {0: torch.export.Dim('batch')}})"
        )
    taken = _range(value.sizes[0], ranges)
    if taken.max_val is not None and taken.max_val < batch_max:
        return f"input {name} takes at most {taken.max_val} rows: give batch_max={taken.max_val} or less"
    if taken.min_val is not None and taken.min_val > LEAST:
        return (
            f"input {name} takes {taken.min_val} rows or more, and a batch may have one: export the program with a "
            "first dimension that is free from 1 on (torch.export.Dim('batch', min=1))"
        )
    return ""


def _range(extent: StoredExtent, ranges: Mapping[str, StoredRange]) -> StoredRange:
    """Returns the range of an open extent; one without bounds if the file has none for it."""
    return ranges.get(_symbol(extent), StoredRange())


def _symbol(extent: StoredExtent) -> str:
    """Returns the symbol that an open extent is; "" of a number, or of what is computed from symbols."""
    symbol = SYMBOL.fullmatch(extent.as_expr.expr_str) if extent.as_expr is not msgspec.UNSET else None
    return str(symbol.group(1) or symbol.group(2)) if symbol is not None else ""


ADVICE = "export it again, with torch 2.11 or newer, tensors alone as weights, and operations of torch"
