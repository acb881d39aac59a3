"""Writes an ONNX file as a model package: the graph without its weights, which become tensors of the image.

The weights are inputs of the stripped graph: models of one architecture share the graph, and EXEC reads the weights
from the pages. onnxruntime can then precompute nothing from constant weights; small tensors (shapes, axes, scalars)
stay constants of the graph. A package is written only after its graph gave the same answers as the file, alone and in
batches.
"""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from gpu_worker.devices.execution.onnx import ORT_DTYPES, OnnxForward, open_session, require
from gpu_worker.packages import batches, examples, given_rows, trials
from gpu_worker.packages.arguments import Opening, PackageOptions, check_inputs, opening_of, printable
from gpu_worker.packages.comparing import Run, same, tolerance
from gpu_worker.packages.declared import MANIFEST, TENSORS_MAX
from gpu_worker.packages.importing import onnx_runs
from gpu_worker.packages.judging import onnx_graphs
from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.reading.files import open_plain, read_plain
from gpu_worker.packages.reading.onnx_parts import FROM_FILES, parts_of
from gpu_worker.packages.sizing import Sizing
from gpu_worker.packages.stored import EXAMPLE, WEIGHTS
from gpu_worker.packages.writing import manifest_text, staged
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.tensors import DTYPES

CONSTANT_SIZE_MAX = 16  # elements; a tensor with no more stays in the graph
FLOATS = {"float32", "float64", "float16"}
EXPANDS = 8  # first opset whose Expand can repeat a number
GRAPH = "graph.onnx"
FILE_BYTES_MAX = 2 << 30  # protocol buffers have no larger messages; larger models keep tensors in other files
CPU = torch.device("cpu")
# {onnx.TensorProto.DataType: dtype}
EXACTNESS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
Array = np.ndarray[Any, Any]


def write_onnx_package(
    repository: str | Path,
    name: str,
    version: str,
    file: str | Path,
    *,
    example: Mapping[str, Any] | None = None,
    batch_max: int = 32,
    slo_ms: float = 1000.0,
    labels: Sequence[str] | None = None,
    cache: bool = True,
    description: str | None = None,
    dims: Mapping[str, tuple[int, int]] | None = None,
    pad: Mapping[str, float] | None = None,
    exact: bool = False,
    rows: Mapping[str, str] | None = None,
) -> Package:
    """The package is on disk, whole or not at all, and has been read back.

    The file's inputs must have the batch as a dynamic first dimension; rows must be independent. `example`: {input:
    array `[rows, ...]`}, two rows or more; needed where random ones do not work. `dims`: {name in the file: (least,
    most)} of its other free dimensions; `pad`, `exact` and `rows` are as in `write_package`.

    Raises: PackageError with a code (docs/models.md lists them).
    """
    repository, file = Path(repository), Path(file)
    place = f"{name}:{version} ({file.name})"
    labels, description = () if labels is None else labels, "" if description is None else description
    options = PackageOptions(name, version, batch_max, slo_ms, labels, cache, description)
    opening = opening_of(dims, pad, exact, rows)
    faults = options.faults + opening.faults
    if faults:
        raise PackageError(printable(place), faults, PackageCode.BAD_ARGUMENT)
    model = _read(place, file)
    original = open_session(str(file), place, PackageCode.NOT_ONNX)
    sizing = _inputs(place, original, batch_max, opening)
    specs, inputs = sizing.inputs, [spec.name for spec in sizing.inputs]
    told_apart = {name for pair in opening.rows.items() for name in pair}  # they are tried, and need no first dimension
    sure = _sure(original, inputs) | told_apart
    onnx_graphs.check(place, model, set(inputs), batch_max, sure, _constants(model).get)
    _check_kinds(place, original)
    whole = OnnxForward(original, inputs)
    draw = onnx_runs.draw_of(place, sizing, whole, example, batch_max)
    outputs = onnx_runs.outputs_of(place, whole, draw, batch_max, sizing, opening.rows)
    _repeat_numbers(model, whole, draw)
    weights = _lift_weights(model)
    content = model.SerializeToString()
    lean = OnnxForward(open_session(content, place, PackageCode.NOT_ONNX), [*weights, *inputs])
    before = _digests(weights)
    _check(
        place,
        outputs,
        partial(onnx_runs.run, lean, weights),
        partial(onnx_runs.whole, whole),
        draw,
        batch_max,
        _dtypes(model),
        sizing,
    )
    if _digests(weights) != before:
        why = "running the graph changes its weights: an answer would depend on what was asked before"
        raise PackageError(place, [why], PackageCode.STATE_CHANGED)
    kept = given_rows.to_keep(draw, specs)
    close = tolerance(_dtypes(model), CPU)
    given_rows.check_kept(place, outputs, partial(onnx_runs.run, lean, weights), kept, batch_max, close, sizing)
    manifest = manifest_text(options.spec(sizing, outputs), description or model.doc_string, GRAPH)
    with staged(repository, name, version) as folder:
        (folder / GRAPH).write_bytes(content)
        save_file(weights, folder / WEIGHTS)
        save_tensors({spec.name: tensor for spec, tensor in zip(specs, kept, strict=True)}, folder / EXAMPLE)
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


def _read(place: str, file: Path) -> Any:
    onnx = require("onnx", place)
    _check_files(place, file)
    try:
        onnx.checker.check_model(str(file))  # by path: a model of more than 2 GB does not fit one message
        model = onnx.load(str(file), load_external_data=False)
        if model.functions:  # inlined, so that the checks see their nodes like any others
            model = require("onnx.inliner", place).inline_local_functions(model, convert_version=True)
        onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # protobuf, the checker and the system each raise their own
        raise PackageError(
            place, [f"is not a readable ONNX file: {examples.message_of(error)}"], PackageCode.NOT_ONNX
        ) from None
    if model.functions:
        left = ", ".join(function.name for function in model.functions[:3])
        why = f"functions of the file cannot be put in place of their uses ({left}): export the model without functions"
        raise PackageError(place, [why], PackageCode.NOT_ONNX)
    return model


def _check_files(place: str, file: Path) -> None:
    """What the file refers to lies beside it or below, and none of its operations is code in another file.

    Raises: PackageError, code not_onnx or unsafe_package.
    """
    try:
        found = parts_of(read_plain(file.resolve(), FILE_BYTES_MAX))
    except (OSError, ValueError) as error:
        why = f"is not a readable ONNX file: {getattr(error, 'strerror', None) or error}"
        raise PackageError(place, [why], PackageCode.NOT_ONNX) from None
    faults = [fault for entries in found.files if (fault := _file_fault(file.parent, entries))]
    if any(name in FROM_FILES for _, name in found.operations):
        faults.append(f"calls {', '.join(FROM_FILES)}, which is code in another file: give the model it was made from")
    if faults:
        raise PackageError(place, faults[:5], PackageCode.UNSAFE_PACKAGE)


def _file_fault(folder: Path, entries: Mapping[str, str]) -> str:
    """Returns why a tensor's own file is not read; empty if it is."""
    location = entries.get("location", "")
    path = folder / location
    if not location or not path.resolve().is_relative_to(folder.resolve()):
        return f"a tensor is in {location[:200]!r}, and may be in a file beside the model or below alone"
    try:
        with open_plain(path) as opened:
            size = os.fstat(opened.fileno()).st_size
    except FileNotFoundError:
        return ""  # the library says so
    except OSError as error:
        return f"a tensor is in {location[:200]!r}, which {error.strerror}"
    try:
        start, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError:
        return f"a tensor is in {location[:200]!r}, at a place that is no number"
    fits = start >= 0 and length >= 0 and start + length <= size
    return "" if fits else f"a tensor is in {location[:200]!r}, at {start} to {start + length} of its {size} bytes"


def _lift_weights(model: Any) -> dict[str, Array]:
    """The larger float constants are removed from the graph and are inputs of it. Returns {name: weight}."""
    onnx = require("onnx", "")
    graph = model.graph
    weights = {}
    declared = {value.name for value in graph.input}
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if str(array.dtype) not in FLOATS or array.size <= CONSTANT_SIZE_MAX:
            continue
        weights[tensor.name] = np.array(array, order="C")
        graph.initializer.remove(tensor)
        if tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, array.shape))
    constants = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)  # files of IR version 3 list constants as inputs with a default
    return weights


def _inputs(place: str, session: Any, batch_max: int, opening: Opening) -> Sizing:
    """Returns the file's inputs, and the dimensions that are open in it. Raises: PackageError."""
    found, faults = dict[str, tuple[str, tuple[int | str, ...]]](), list[str]()
    code = PackageCode.BAD_INPUTS
    for value in session.get_inputs():
        dtype = ORT_DTYPES.get(value.type)
        first, *rest = value.shape or [None]
        if not value.shape:
            faults.append(
                f"input {value.name} has no first dimension, so there is none of it for each row: give it one, the "
                "batch, or make it a constant of the graph"
            )
        elif isinstance(first, int) and (first, batch_max) != (1, 1):
            code = PackageCode.BATCH_FIXED
            faults.append(
                f"input {value.name} takes {first} rows, no more and no fewer: export the model with a first dimension "
                "that is free (dynamic_axes={...: {0: 'batch'}})" + (", or give batch_max=1" if first == 1 else "")
            )
        elif dtype not in DTYPES or not all(isinstance(n, str) or (isinstance(n, int) and n > 0) for n in rest):
            faults.append(
                f"input {value.name} is {dtype or value.type} {value.shape}: all dimensions but the first must be "
                f"numbers or have names, and the type be one of {', '.join(DTYPES)}"
            )
        else:
            found[value.name] = (str(dtype), tuple(rest))
    if faults or not found:
        raise PackageError(place, faults or ["the graph has no inputs"], code)
    free = dict.fromkeys(n for _, row in found.values() for n in row if isinstance(n, str))
    unknown = [name for name in free if name not in opening.dims]
    if unknown:
        listed = "; ".join(f"input {name} is {['batch', *row]}" for name, (_, row) in found.items())
        options = " ".join(f"--dim {name}=1:512" for name in unknown)
        why = (
            f"the graph has free dimensions beside the batch ({listed}): say the least and the greatest extent of "
            f"each, as {options} (dims={{{', '.join(f'{name!r}: (1, 512)' for name in unknown)}}}), or export it "
            "without them"
        )
        raise PackageError(place, [why], PackageCode.BAD_INPUTS)
    return check_inputs(place, found, batch_max, opening)


def _constants(model: Any) -> dict[str, Array]:
    """Returns the small values of the graph that are known without running it."""
    onnx = require("onnx", "")
    found = [(tensor.name, tensor) for graph in onnx_graphs.graphs(model.graph) for tensor in graph.initializer]
    found += [
        (node.output[0], attribute.t)
        for graph in onnx_graphs.graphs(model.graph)
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    ]
    return {
        name: onnx.numpy_helper.to_array(tensor) for name, tensor in found if _elements(tensor) <= CONSTANT_SIZE_MAX
    }


def _digests(weights: Mapping[str, Array]) -> list[int]:
    return [xxhash.xxh3_64_intdigest(weight.data) for weight in weights.values()]


def _elements(tensor: Any) -> int:
    return math.prod(tensor.dims)


def _sure(session: Any, inputs: Sequence[str]) -> set[str]:
    """Returns the outputs whose first dimension onnxruntime knows to be that of the inputs."""
    batch = {value.shape[0] for value in session.get_inputs() if value.name in inputs and value.shape}
    return {value.name for value in session.get_outputs() if value.shape and value.shape[0] in batch}


def _check_kinds(place: str, session: Any) -> None:
    """All outputs are tensors that can be sent. Raises: PackageError, code bad_outputs."""
    faults = [
        f"output {value.name} is {value.type}, which cannot travel: end the graph in tensors of {', '.join(DTYPES)}"
        for value in session.get_outputs()
        if value.type not in ORT_DTYPES
    ]
    if len(session.get_outputs()) > TENSORS_MAX:
        faults = [f"the graph has {len(session.get_outputs())} outputs; a model may have {TENSORS_MAX}"]
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_OUTPUTS)


def _dtypes(model: Any) -> set[torch.dtype]:
    """Returns the dtypes that are computed with, as far as the model shows them; float32 is always among them."""
    onnx = require("onnx", "")
    # inference fails on unknown operators: the dtypes that the file itself states remain
    with contextlib.suppress(Exception):
        model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    return {torch.float32} | {EXACTNESS[kind] for kind in kinds if kind in EXACTNESS}


def _repeat_numbers(model: Any, forward: OnnxForward, draw: batches.Draw) -> None:
    """The graph returns a number that holds for the batch once for each row, where the opset allows it."""
    outputs = onnx_runs.run(forward, {}, draw(1, torch.Generator().manual_seed(batches.SEED)))
    numbers = [name for name, output in zip(forward.outputs, outputs, strict=True) if not output.ndim]
    opset = next((found.version for found in model.opset_import if found.domain in ("", "ai.onnx")), 0)
    if numbers and opset >= EXPANDS:
        onnx_graphs.repeat(require("onnx", ""), model, numbers, forward.inputs[0])


def _check(
    place: str,
    outputs: tuple[wire.TensorSpec, ...],
    run: Run,
    run_original: Run,
    draw: batches.Draw,
    batch_max: int,
    dtypes: set[torch.dtype],
    sizing: Sizing,
) -> None:
    """The stripped graph passes all checks and gives what the file gives. Raises: PackageError."""
    trial = trials.Trial(draw, batch_max, examples.filling(draw, sizing, batches.SEED + 1), sizing=sizing)
    close = tolerance(dtypes, CPU)
    names = [spec.name for spec in outputs]
    try:
        expected = trial.run(run_original)
        results = trials.check(place, outputs, run, trial, close)
        trials.check_telling(place, outputs, run, trial, results, close)
        trials.check_beside(place, outputs, run, trial, results, close)
    except PackageError:
        raise
    except RuntimeError as error:
        raise onnx_runs.fixed_fault(place, error, sizing) from None
    for wanted, found in zip(expected, results, strict=True):
        for name, one, other in zip(names, wanted, found, strict=True):
            if not same(one, other, close):
                why = f"{trials.named(name)} is another one once the file's weights are inputs. Serve it as a container"
                raise PackageError(place, [why], PackageCode.NOT_EQUAL)
