"""An ONNX file as a model package: the graph without its weights, which become tensors of the image like any other's.

The weights are inputs of the stripped graph, so models of one architecture share it, and what EXEC reads are the pages.
What onnxruntime could precompute from constant weights it cannot; small tensors (shapes, axes, scalars) stay constants.
Nothing is written that was not seen to answer as the file does, alone and in batches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from broker import wire
from broker.errors import PackageError
from broker.tensors import DTYPES
from gpu_worker import examples, trials
from gpu_worker.devices.onnx import ORT_DTYPES, OnnxForward, open_session, require
from gpu_worker.importing.arguments import options
from gpu_worker.importing.shapes import counts, output_spec
from gpu_worker.importing.signature import check_names
from gpu_worker.importing.writing import manifest_text, staged
from gpu_worker.packages import EXAMPLE, MANIFEST, WEIGHTS, Package, read_package

CONSTANT_SIZE_MAX = 16  # elements of a tensor that stays in the graph
FLOATS = {"float32", "float64", "float16"}
GRAPH = "graph.onnx"
CPU = torch.device("cpu")
Array = "np.ndarray[Any, Any]"


def write_onnx_package(
    repository: str | Path,
    name: str,
    version: str,
    file: str | Path,
    *,
    example: Mapping[str, Any] | None = None,
    batch_max: int = 32,
    slo_ms: float = 1000.0,
    labels: Sequence[str] = (),
    cache: bool = True,
    description: str = "",
) -> Package:
    """The package is on disk, whole or not at all, and has been read back.

    The file's inputs must have the batch as a dynamic first dimension and all others fixed; rows must be independent.
    `example`: {input: array [rows, ...]}, two rows or more to try it with, where random ones will not do.
    Raises: PackageError, with a code (docs/models.md lists them).
    """
    repository, file = Path(repository), Path(file)
    place = f"{name}:{version} ({file.name})"
    faults = options(name, version, batch_max, slo_ms, labels)
    if faults:
        raise PackageError(place, faults, "bad_argument")
    model = _read(place, file)
    weights = _lift_weights(model)
    content = model.SerializeToString()
    stripped, original = open_session(content, place), open_session(str(file), place)
    specs = _inputs(place, original, batch_max)
    inputs = [spec.name for spec in specs]
    whole, lean = OnnxForward(original, inputs), OnnxForward(stripped, [*weights, *inputs])
    tensors = [torch.from_numpy(weight) for weight in weights.values()]

    def run(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return lean(*tensors, *given)

    def run_original(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return whole(*given)

    draw = _drawn(place, specs, run_original, example, batch_max)
    outputs = _outputs(place, whole, draw, batch_max)
    _check(place, outputs, run, run_original, draw, batch_max, {tensor.dtype for tensor in tensors})
    kept = examples.to_keep(draw, specs)
    ins, outs = ({spec.name: (spec.dtype, spec.shape[1:]) for spec in group} for group in (specs, outputs))
    manifest = manifest_text(ins, outs, batch_max, slo_ms, labels, cache, description or model.doc_string, GRAPH)
    with staged(repository, name, version) as folder:
        (folder / GRAPH).write_bytes(content)
        save_file(weights, folder / WEIGHTS)
        save_tensors({spec.name: rows for spec, rows in zip(specs, kept, strict=True)}, folder / EXAMPLE)
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


def _read(place: str, file: Path) -> Any:
    onnx = require("onnx", place)
    try:
        onnx.checker.check_model(str(file))  # by its name: a model of more than 2 GB is no single message
        return onnx.load(str(file))
    except Exception as error:  # protobuf, the checker and the system each raise their own
        raise PackageError(place, [f"is not a readable ONNX file: {examples.said(error)}"], "not_onnx") from None


def _lift_weights(model: Any) -> dict[str, "np.ndarray[Any, Any]"]:
    """Takes the larger float constants out of the graph; they are inputs of it afterwards."""
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


def _inputs(place: str, session: Any, batch_max: int) -> tuple[wire.TensorSpec, ...]:
    found, faults = [], []
    code = "bad_inputs"
    for value in session.get_inputs():
        dtype = ORT_DTYPES.get(value.type)
        first, *rest = value.shape or [None]
        if isinstance(first, int) and (first, batch_max) != (1, 1):
            code = "batch_fixed"
            faults.append(
                f"input {value.name} takes {first} rows, no more and no fewer: export the model with a first dimension "
                "that is free (dynamic_axes={...: {0: 'batch'}})" + (", or give batch_max=1" if first == 1 else "")
            )
        elif dtype not in DTYPES or not all(isinstance(n, int) and n > 0 for n in rest):
            faults.append(
                f"input {value.name} is {value.type} {value.shape}: all dimensions but the first must be fixed, and "
                "the type one that can travel"
            )
        else:
            found.append(wire.TensorSpec(name=value.name, dtype=str(dtype), shape=(-1, *rest)))
    if faults or not found:
        raise PackageError(place, faults or ["the graph has no inputs"], code)
    check_names(place, "inputs", [spec.name for spec in found])
    return tuple(found)


def _drawn(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: trials.Run,
    example: Mapping[str, Any] | None,
    batch_max: int,
) -> trials.Draw:
    """How inputs are drawn: given rows, or random ones. Raises: PackageError."""
    if example is not None:
        return examples.given(place, specs, example, batch_max).draw
    drawn, why = examples.find(specs, run, batch_max)
    if drawn is None:
        raise PackageError(place, [examples.not_run(why)], "forward_failed")
    return drawn.draw


def _outputs(place: str, forward: OnnxForward, draw: trials.Draw, batch_max: int) -> tuple[wire.TensorSpec, ...]:
    """Dtypes and shapes of one row, found by running some. Raises: PackageError."""
    rows = counts(batch_max)
    generator = torch.Generator().manual_seed(trials.SEED)
    try:
        few, more = (forward(*draw(count, generator)) for count in rows)
    except Exception as error:  # onnxruntime raises its own
        raise PackageError(place, [f"fails on {rows} rows: {examples.said(error)}"], "forward_failed") from None
    check_names(place, "outputs", forward.outputs)
    pairs = zip(forward.outputs, few, more, strict=True)
    return tuple(output_spec(place, name, one, other, rows) for name, one, other in pairs)


def _check(
    place: str,
    outputs: tuple[wire.TensorSpec, ...],
    run: trials.Run,
    run_original: trials.Run,
    draw: trials.Draw,
    batch_max: int,
    dtypes: set[torch.dtype],
) -> None:
    """The stripped graph is sound, and gives what the file gives. Raises: PackageError."""
    padding = draw(1, torch.Generator().manual_seed(trials.SEED + 1))
    trial = trials.Trial(draw, batch_max, padding)
    close = trials.tolerance({*dtypes, torch.float32}, CPU)
    try:
        results = trials.check(place, outputs, run, trial, close)
        expected = trial.run(run_original)
    except PackageError:
        raise
    except Exception as error:  # onnxruntime raises its own
        raise PackageError(place, [f"fails on a batch: {examples.said(error)}"], "batch_fixed") from None
    for wanted, found in zip(expected, results, strict=True):
        for spec, one, other in zip(outputs, wanted, found, strict=True):
            if not trials.same(one, other, close):
                why = f"output {spec.name} differs from the file's once its weights are inputs; serve it as a container"
                raise PackageError(place, [why], "not_equal")
