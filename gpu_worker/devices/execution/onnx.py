"""Makes ONNX graphs executable with onnxruntime, which is optional; weights are inputs, given as views of the pages."""

import importlib
import re
from collections.abc import Sequence
from typing import Any

import torch

from gpu_worker.packages.package import Package
from gpu_worker.packages.reading import graphs
from gpu_worker.packages.reading.graphs import UnsafeProgram
from mesh.codes import PackageCode
from mesh.errors import PackageError

ORT_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16", "tensor(uint8)": "uint8",
}  # fmt: skip
STORED = {"F64": "float64", "F32": "float32", "F16": "float16"}  # {dtype of weights as in safetensors: name}
MESSAGE_MAX = 420  # characters kept of an onnxruntime message
# Parts of its messages: the kind of error, the place in its own source, the failed condition, the graph's operation.
PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .* failed:)?")
SOURCE = re.compile(r"\S+\.(?:h|cc|cpp|hpp):\d+ ")
OPERATION = re.compile(r"running (\w+) node\. Name:'([^']*)'")
STATUS, FALSE, NAMESPACE = "Status Message: ", " was false. ", "(anonymous namespace)"
NOTHING = 4  # severity that disables its own log; every error is raised anyway


def require(module: str, place: str) -> Any:
    """Returns the module. Raises: PackageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageError(place, [f"{module} is not installed here: pip install 'gearmesh[onnx]'"]) from error


def open_session(model: bytes | str, place: str, code: PackageCode = PackageCode.BAD_PACKAGE) -> Any:
    """A session that runs the model (serialised, or a file's name) on as many threads as torch may use.

    Raises: PackageError with this code.
    """
    ort = require("onnxruntime", place)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never its own, which is checked less
    options.log_severity_level = NOTHING
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own errors
        raise PackageError(place, [f"onnxruntime cannot load it: {message_of(error)}"], code) from error


def message_of(error: Exception) -> str:
    """Returns onnxruntime's message in one line, without its source, and with the operation of the graph."""
    text = str(error)
    operation = OPERATION.search(text)
    text = PREFIX.sub("", text).rpartition(STATUS)[2]
    source = SOURCE.search(text)
    if source is not None:
        text = _behind_the_signature(text[source.end() :])
        text = text.partition(FALSE)[2] or text
    told = f" (in {' '.join(filter(None, operation.groups()))})" if operation else ""
    words = " ".join(text.split())
    return f"{words[:MESSAGE_MAX].rstrip('.') or type(error).__name__}{told}"


def _behind_the_signature(text: str) -> str:
    """Returns the text after the first parentheses that hold a function's arguments.

    Parentheses that hold nothing but a namespace are skipped.
    """
    depth = 0
    for at, character in enumerate(text.replace(NAMESPACE, "_" * len(NAMESPACE))):
        depth += (character == "(") - (character == ")")
        if character == ")" and not depth:
            return text[at + 1 :].removeprefix(" const").strip()
    return text


class OnnxForward:
    """(weights..., inputs...) -> outputs of one architecture. Releases the GIL while it computes."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session = session
        self.inputs = names
        self.outputs = [value.name for value in session.get_outputs()]

    def __call__(self, *flat: torch.Tensor) -> list[torch.Tensor]:
        """Returns the outputs; `flat`: weights, then inputs, in the order of `inputs`."""
        feed = {name: tensor.numpy() for name, tensor in zip(self.inputs, flat, strict=True)}
        return [_tensor(output) for output in self._session.run(self.outputs, feed)]


def _tensor(output: Any) -> torch.Tensor:
    """Returns the output as a tensor. Raises: TypeError for a sequence, a map or strings."""
    try:
        return torch.from_numpy(output)
    except TypeError:
        kind = f"{type(output).__name__} of {getattr(output, 'dtype', 'what is no tensor')}"
        raise TypeError(f"an output is a {kind}; only tensors of numbers can be served") from None


def load_onnx(package: Package) -> OnnxForward:
    """Returns the executable of the package's architecture. Raises: PackageError."""
    assert package.graph is not None
    try:
        content = graphs.text(package.graph)
        graphs.check_onnx(content)
    except UnsafeProgram as error:
        raise PackageError(package.ref, [f"{package.graph.name}: {error}"], PackageCode.UNSAFE_PACKAGE) from error
    except (OSError, ValueError) as error:
        raise PackageError(package.ref, [f"{package.graph.name}: {error}"]) from error
    session = open_session(content, package.graph.name)
    _check_inputs(package, session)
    return OnnxForward(session, [w.name for w in package.layout] + [spec.name for spec in package.spec.inputs])


def _extent(extent: int | str | None) -> int:
    """Returns the extent; -1 for one that the graph leaves open, by a name or without."""
    return extent if isinstance(extent, int) else -1


def _check_inputs(package: Package, session: Any) -> None:
    taken = {
        value.name: (ORT_DTYPES.get(value.type, value.type), [_extent(extent) for extent in value.shape])
        for value in session.get_inputs()
    }
    faults = []
    for weight in package.layout:
        stored = (STORED.get(weight.dtype, weight.dtype), list(weight.shape))
        if weight.name not in taken:
            faults.append(f"weights.safetensors: the graph does not take {weight.name}")
        elif taken[weight.name] != stored:
            faults.append(f"{weight.name}: the graph takes {taken[weight.name]}, weights.safetensors has {stored}")
    for spec in package.spec.inputs:
        if spec.name not in taken:
            faults.append(f"input {spec.name}: the graph does not take it")
        elif taken[spec.name][0] != spec.dtype or taken[spec.name][1][1:] != list(spec.shape[1:]):
            faults.append(
                f"input {spec.name}: the graph takes {taken[spec.name]}, "
                f"model.toml says {(spec.dtype, list(spec.shape))}"
            )
    known = {weight.name for weight in package.layout} | {spec.name for spec in package.spec.inputs}
    faults += [f"{name}: the graph takes it, and it is neither a weight nor an input" for name in taken.keys() - known]
    if faults:
        raise PackageError(package.ref, faults[:20])
