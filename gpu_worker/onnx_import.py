"""An ONNX file as a model package: the graph without its weights, which become tensors of the image like any other's.

The weights are inputs of the stripped graph, so models of one architecture share it, and what EXEC reads are the pages.
What onnxruntime could precompute from constant weights it cannot; small tensors (shapes, axes, scalars) stay constants.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from broker import wire
from broker.errors import PackageError
from broker.tensors import DTYPES
from gpu_worker.devices.onnx import ORT_DTYPES, open_session, require
from gpu_worker.importing.writing import manifest_text, staged
from gpu_worker.packages import BATCH_MAX, MANIFEST, Package, read_package

CONSTANT_SIZE_MAX = 16  # elements of a tensor that stays in the graph
FLOATS = {"float32", "float64", "float16"}


def write_onnx_package(
    repository: Path,
    name: str,
    version: str,
    file: Path,
    *,
    batch_max: int = 32,
    slo_ms: float = 1000.0,
    labels: Sequence[str] = (),
    cache: bool = True,
    description: str = "",
) -> Package:
    """The package is on disk, whole or not at all, and has been read back.

    The file's inputs must have the batch as a dynamic first dimension and all others fixed. Raises: PackageError.
    """
    onnx = require("onnx", str(file))
    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the system each raise their own
        raise PackageError(str(file), [f"is not a readable ONNX file: {_first_line(error)}"]) from error
    weights = _lift_weights(onnx, model)
    content = model.SerializeToString()
    session = open_session(content, file.name)
    inputs = _inputs(session, weights.keys(), file)
    if not 1 <= batch_max <= BATCH_MAX:
        raise PackageError(str(file), [f"batch_max must be 1 to {BATCH_MAX}; got {batch_max}"])
    outputs = _outputs(session, weights, inputs, file)
    manifest = manifest_text(
        inputs, outputs, batch_max, slo_ms, labels, cache, description or model.doc_string, "graph.onnx"
    )
    with staged(repository, name, version) as folder:
        (folder / "graph.onnx").write_bytes(content)
        save_file(weights, folder / "weights.safetensors")
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


def _lift_weights(onnx: Any, model: Any) -> dict[str, "np.ndarray[Any, Any]"]:
    """Takes the larger float constants out of the graph; they are inputs of it afterwards."""
    graph = model.graph
    weights = {}
    declared = {value.name for value in graph.input}
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if str(array.dtype) not in FLOATS or array.size <= CONSTANT_SIZE_MAX:
            continue
        weights[tensor.name] = np.ascontiguousarray(array)
        graph.initializer.remove(tensor)
        if tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, array.shape))
    constants = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)  # files of IR version 3 list constants as inputs with a default
    return weights


def _inputs(session: Any, weights: Any, file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    faults = []
    for value in session.get_inputs():
        if value.name in weights:
            continue
        dtype = ORT_DTYPES.get(value.type)
        first, *rest = value.shape or [None]
        if dtype not in DTYPES or isinstance(first, int) or not all(isinstance(n, int) and n > 0 for n in rest):
            faults.append(
                f"input {value.name} is {value.type} {value.shape}: the batch must be a dynamic first dimension, all "
                "others fixed (dynamic_axes={...: {0: 'batch'}} when it is exported), and the type one that can travel"
            )
            continue
        found[value.name] = (str(dtype), tuple(rest))
    if faults or not found:
        raise PackageError(str(file), faults or ["the graph has no inputs"])
    return found


def _outputs(
    session: Any, weights: dict[str, Any], inputs: dict[str, tuple[str, tuple[int, ...]]], file: Path
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of one row, found by running two."""
    feed = weights | {name: np.zeros((2, *shape), DTYPES[dtype]) for name, (dtype, shape) in inputs.items()}
    try:
        results = session.run(None, feed)
    except Exception as error:  # onnxruntime raises its own
        raise PackageError(str(file), [f"fails on two rows of zeros: {_first_line(error)}"]) from error
    found = {}
    for value, result in zip(session.get_outputs(), results, strict=True):
        if not isinstance(result, np.ndarray) or result.ndim < 1 or len(result) != 2 or str(result.dtype) not in DTYPES:
            raise PackageError(str(file), [f"output {value.name}: must be a tensor with the batch first"])
        found[value.name] = (str(result.dtype), result.shape[1:])
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
