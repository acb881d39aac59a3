"""The process that runs user code. It needs Python 3.9 or later and numpy, and imports nothing of gearmesh.

    python child.py CONTROL_FD MODULE:FUNCTION OPTIONS

Messages are JSON, one per packet of a Unix socket; tensors are in slots of shared memory:

    here -> parent   {"op": "ready", "inputs": [...] | null, "outputs": [...] | null, "code": digest, "about": text}
                     {"op": "error", "text": traceback, "passing": whether it may be otherwise another time}
                                                                           it cannot be served; the process ends
    parent -> here   {"op": "memory", "bytes": n, "inputs": [...], "outputs": [...]} with the memory's descriptor
                     {"op": "run", "id": 7, "rows": 3, "at": offset of the slot}
    here -> parent   {"op": "done", "id": 7, "begin": s, "end": s, "error": null | text, "trace": text}

A tensor spec is {"name", "dtype", "shape": [-1, ...], "at": offset in the slot}. Instants are of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, Dict

PACKET_BYTES_MAX = 1 << 16
TEXT_MAX = 8000
ROW_TOLERANCE = 1e-4  # relative to the row's largest value: a row alone may be summed in another order than in a batch
HALF_TOLERANCE = 1e-2  # for float16
PASSING = frozenset((
    errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE,
    errno.EBUSY, errno.EINTR, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
))  # fmt: skip
ENCODER = json.JSONEncoder(ensure_ascii=False)
Spec = Dict[str, Any]  # {"name", "dtype", "shape"} and, in shared memory, "at"
DTYPES = (
    "float32", "float64", "float16", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
)  # fmt: skip


class WrongOutput(Exception):
    """The function returned something other than promised; `str()` says what is expected."""


class SourceChanged(Exception):
    """The source changed during the import, so the imported code may differ from the source as it is now."""


def main() -> int:
    """Serves until the parent is gone. Returns the exit code."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()
    here = os.path.dirname(os.path.abspath(__file__))
    # the folder of this script is removed, so that its files shadow no modules
    sys.path[:] = [os.getcwd(), *(path for path in sys.path if path != here)]
    options = json.loads(sys.argv[3])
    try:
        check_interpreter()
        function, code = load_as_it_is(sys.argv[2])
        if isinstance(function, OnnxSession):
            function.narrow(options.get("outputs"), int(options["rows_max"]))
        inputs, outputs = options.get("inputs") or guess_inputs(function), options.get("outputs")
        sample = options.get("sample")
        if sample is not None:
            alone = bool(options.get("cache")) and int(options["rows_max"]) > 1
            inputs, outputs = try_sample(function, sample, inputs, outputs, bool(options.get("check")), alone)
        outputs = outputs or guess_outputs(function)
        ready = {"op": "ready", "inputs": inputs, "outputs": outputs, "code": code}
    except BaseException as error:
        send(control, {"op": "error", "text": traceback.format_exc()[-TEXT_MAX:], "passing": may_pass(error)})
        return 1
    send(control, ready)
    Server(control, function).serve()
    return 0


def may_pass(error: BaseException) -> bool:
    """Returns whether the same code may be imported another time: memory, descriptors, a disk or a network were out."""
    reason = getattr(error, "reason", None)  # urllib's error holds the system's
    if isinstance(reason, OSError):
        return may_pass(reason)
    kinds = (MemoryError, ConnectionError, TimeoutError, SourceChanged)
    if isinstance(error, kinds) or type(error).__name__ == "OutOfMemoryError":  # the latter: torch's
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in PASSING


def check_interpreter() -> None:
    """What every batch needs is imported now, so that the first batch does not wait for it. Raises: ImportError."""
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{sys.executable} has no numpy, which a container needs: install it there") from error


def die_with_parent() -> None:
    """The kernel ends this process when its parent ends, even if the user code hangs."""
    # not Linux: the closed socket ends the process once the code returns
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def send(control: socket.socket, message: dict[str, Any]) -> None:
    """The message is sent. Its texts are already cut to fit a packet, in whatever script they are."""
    control.send(ENCODER.encode(message).encode(errors="replace"))


def load_as_it_is(target: str) -> tuple[Any, str]:
    """Returns the callable and the digest of its code. Raises: SourceChanged if the module was written to meanwhile."""
    compiled = FromSource(target.partition(":")[0], os.getcwd())
    sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), compiled)
    file = source_file(target)
    source = read(file)
    function = load(target)
    if read(file) != source or compiled.sources.get(file, source) != source:
        raise SourceChanged(f"{file} changed while it was imported: start it again")
    return function, hashlib.sha256(target.encode() + b"\0" + source).hexdigest()[:32]


class FromSource:
    """Imports the target, and the modules in its folder, from their source as it is now.

    Python accepts old bytecode for a new source of the same second and size, and would run the old code. Packages
    installed with pip are imported as usual: compiling a library takes longer than importing it.
    """

    def __init__(self, target: str, folder: str) -> None:
        """`target`: name of its module; `folder`: where modules are compiled from source."""
        self.target, self.folder = target, folder
        self.sources: dict[str | None, bytes] = {}  # {file: the source that was compiled}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns the module's spec, with a loader that compiles its source if the module is compiled here."""
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader and self.holds(spec):
            spec.loader = SourceLoader(spec.name, spec.loader.path, self.sources)
        return spec

    def holds(self, spec: Any) -> bool:
        """Returns whether the module is compiled here."""
        within = os.path.relpath(os.path.realpath(spec.origin), os.path.realpath(self.folder)).split(os.sep)
        return spec.name == self.target or not {os.pardir, "site-packages", "dist-packages"} & set(within)


class SourceLoader(importlib.machinery.SourceFileLoader):
    """A loader that neither reads nor writes bytecode."""

    def __init__(self, name: str, path: str, sources: dict[str | None, bytes]) -> None:
        super().__init__(name, path)
        self.sources = sources

    def get_code(self, fullname: str) -> Any:
        """Returns the code object, compiled from the source as it is now."""
        source = self.sources[self.path] = self.get_data(self.path)
        return self.source_to_code(source, self.path)


def source_file(target: str) -> str | None:
    """Returns the file of the target module's source; None if it has none, as extension modules."""
    # importing the module will raise the error again
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(target.partition(":")[0])
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            return found.origin
    return None


def read(file: str | None) -> bytes:
    """Returns the contents of the file as they are now; empty without a file."""
    if file is None:
        return b""
    with open(file, "rb") as opened:
        return opened.read()


def load(target: str) -> Any:
    """Returns the callable that MODULE:ATTRIBUTE names."""
    module, colon, path = target.partition(":")
    if not colon or not module or not path:
        raise ValueError(f"--predict takes MODULE:FUNCTION, as in my_model:predict; got {target!r}")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if hasattr(found, "get_inputs") and hasattr(found, "run"):
        return OnnxSession(found)
    if not callable(found):
        raise TypeError(f"{target} is a {type(found).__name__}, which cannot be called")
    return found


class OnnxSession:
    """An onnxruntime.InferenceSession as a function of named arrays."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = [onnx_spec(tensor) for tensor in session.get_inputs()]
        self.outputs = [onnx_spec(tensor) for tensor in session.get_outputs()]
        self.names = [tensor["name"] for tensor in self.outputs]

    def narrow(self, declared: list[Spec] | None, rows_max: int) -> None:
        """If outputs are declared, only those are computed. Raises: ValueError if a batch would not fit."""
        if declared:
            unknown = [tensor["name"] for tensor in declared if tensor["name"] not in self.names]
            if unknown:
                raise ValueError(f"the session has no output {unknown[0]!r}, but {', '.join(self.names)}")
            self.names = [tensor["name"] for tensor in declared]
        for tensor in self.session.get_inputs():
            fixed = tensor.shape[0] if tensor.shape else None
            if isinstance(fixed, int) and (fixed, rows_max) != (1, 1):
                way = "give --batch-max 1, or export" if fixed == 1 else "export"
                raise ValueError(
                    f"the session takes {fixed} rows of {tensor.name!r} at a time, no more and no fewer: {way} the "
                    "model with a first dimension that is free"
                )

    def __call__(self, *only: Any, **named: Any) -> dict[str, Any]:
        feeds = named or {self.inputs[0]["name"]: only[0]}
        return dict(zip(self.names, self.session.run(self.names, feeds)))


def onnx_spec(tensor: Any) -> Spec:
    """Returns {"name", "dtype", "shape"} of one input or output of a session."""
    dtype = tensor.type[len("tensor(") : -1] if tensor.type.startswith("tensor(") else tensor.type
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return {"name": tensor.name, "dtype": dtype, "shape": [-1, *tensor.shape[1:]]}


def guess_inputs(function: Any) -> list[Spec] | None:
    """Returns specs of the inputs from the function itself.

    They come from an attribute `inputs`, or from a scikit-learn estimator's number of features. None if there is
    neither.
    """
    if getattr(function, "inputs", None):
        return list(function.inputs)
    owner = getattr(function, "__self__", None)
    features = getattr(owner, "n_features_in_", None)
    if features is not None:
        return [{"name": "x", "dtype": "float64", "shape": [-1, int(features)]}]
    return None


def guess_outputs(function: Any) -> list[Spec] | None:
    """Returns specs of the outputs from an attribute `outputs`, or from what scikit-learn's methods return."""
    if getattr(function, "outputs", None):
        return list(function.outputs)
    owner, method = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if owner is None or not hasattr(owner, "n_features_in_"):
        return None
    classes = getattr(owner, "classes_", None)
    columns = getattr(owner, "n_outputs_", 1) != 1 or len(getattr(getattr(owner, "coef_", None), "shape", ())) > 1
    if isinstance(classes, list) or (classes is None and columns):
        return None  # several targets, and the estimator does not say of which kind
    if method == "predict":
        dtype = str(classes.dtype) if classes is not None else "float64"
        if dtype not in DTYPES:
            raise TypeError(f"predict returns {dtype} labels; serve a function that returns their numbers instead")
        return [{"name": "y", "dtype": dtype, "shape": [-1]}]
    if method in ("predict_proba", "predict_log_proba") and classes is not None:
        return [{"name": "y", "dtype": "float64", "shape": [-1, len(classes)]}]
    if method == "decision_function" and classes is not None:
        return [{"name": "y", "dtype": "float64", "shape": [-1] if len(classes) == 2 else [-1, len(classes)]}]
    return None


def try_sample(
    function: Any, path: str, inputs: list[Spec] | None, outputs: list[Spec] | None, report: bool, alone: bool
) -> tuple[list[Spec], list[Spec]]:
    """Runs the function once on the operator's own sample, and returns the specs (inputs, outputs) that it shows.

    The sample is a .npy file for one input, or a .npz with one array for each input; the first dimension is the batch.
    `alone`: each row must give the same by itself.
    """
    import numpy as np

    found = np.load(path, allow_pickle=False)
    arrays = {name: found[name] for name in found.files} if hasattr(found, "files") else {None: found}
    if inputs is None:
        inputs = [
            {"name": name or "x", "dtype": a.dtype.name, "shape": [-1, *a.shape[1:]]} for name, a in arrays.items()
        ]
    if len(arrays) != len(inputs):
        raise ValueError(f"{path} holds {len(arrays)} arrays; the function takes {len(inputs)}")
    given = []
    for spec in inputs:
        array = arrays.get(spec["name"], arrays.get(None))
        if array is None:
            raise ValueError(f"{path} holds no array {spec['name']!r}, but {', '.join(map(str, arrays))}")
        if list(array.shape[1:]) != list(spec["shape"][1:]):
            raise ValueError(f"{path}: {spec['name']} has shape {list(array.shape)}; declared is {spec['shape']}")
        array = np.ascontiguousarray(array.astype(spec["dtype"]))
        array.flags.writeable = False
        given.append(array)
    rows = len(given[0])
    begin = time.monotonic()
    result = call(function, inputs, given)
    took = time.monotonic() - begin
    if outputs is None:
        named = result if isinstance(result, dict) else {"y": result}
        outputs = []
        for name, value in named.items():
            array = as_array(name, value)
            if array.ndim == 0 or len(array) != rows:
                raise WrongOutput(f"output {name!r} has shape {list(array.shape)} for {rows} rows: batch comes first")
            if array.dtype.name not in DTYPES:
                raise WrongOutput(f"output {name!r} is {array.dtype}; a tensor is one of {', '.join(DTYPES)}")
            outputs.append({"name": name, "dtype": array.dtype.name, "shape": [-1, *array.shape[1:]]})
    together = [array.copy() for array in take(result, outputs, rows)]
    for row in range(rows if alone and rows > 1 else 0):
        check_row(function, path, row, inputs, given, outputs, together)
    if report:
        sys.stdout.write(f"ran on {path}: {rows} rows in {took * 1e3:.2f} ms\n")
    return inputs, outputs


def check_row(
    function: Any, path: str, row: int, inputs: list[Spec], given: list[Any], outputs: list[Spec], together: list[Any]
) -> None:
    """A row of the sample gives by itself what it gives among the others. Raises: WrongOutput."""
    try:
        alone = take(call(function, inputs, [array[row : row + 1] for array in given]), outputs, 1)
    except Exception as raised:
        raise WrongOutput(f"{path}: row {row} by itself: {describe(raised)}") from raised
    for spec, among, by_itself in zip(outputs, together, alone):
        if not same_row(among[row], by_itself[0]):
            raise WrongOutput(
                f"{path}: row {row} gives another {spec['name']!r} by itself than among the others. Rows must be "
                "independent of each other: requests of many clients are computed together, and answers are reused. "
                "Compute each row by itself, or give --batch-max 1; --no-cache where equal inputs need not have equal "
                "outputs"
            )


def call(function: Any, specs: list[Spec], arrays: list[Any]) -> Any:
    """Returns the function's result. One input is passed by position, several by name."""
    if len(arrays) == 1:
        return function(arrays[0])
    return function(**{spec["name"]: array for spec, array in zip(specs, arrays)})


def take(result: Any, specs: list[Spec], rows: int) -> list[Any]:
    """Returns one array per output, with the promised shape and a dtype that can be cast. Raises: WrongOutput."""
    import numpy as np

    if not isinstance(result, dict):
        if result is None:
            raise WrongOutput(f"the function returned None; promised are {', '.join(spec['name'] for spec in specs)}")
        if len(specs) != 1:
            raise WrongOutput(
                f"the function returned a {type(result).__name__}; with {len(specs)} outputs it must return a dict of "
                f"arrays: {', '.join(spec['name'] for spec in specs)}"
            )
        result = {specs[0]["name"]: result}
    missing = [spec["name"] for spec in specs if spec["name"] not in result]
    extra = [name for name in result if name not in {spec["name"] for spec in specs}]
    if missing or extra:
        wanted = ", ".join(spec["name"] for spec in specs)
        raise WrongOutput(
            f"the function returned outputs {', '.join(map(str, result)) or 'none'}; promised are {wanted}"
        )
    taken = []
    for spec in specs:
        array = as_array(spec["name"], result[spec["name"]])
        shape = (rows, *spec["shape"][1:])
        if array.shape != shape:
            raise WrongOutput(
                f"output {spec['name']!r} has shape {list(array.shape)} for {rows} rows; it must be {list(shape)}: "
                "one row for each row of the input, in the same order"
            )
        if not np.can_cast(array.dtype, spec["dtype"], "same_kind"):
            raise WrongOutput(f"output {spec['name']!r} is {array.dtype}; promised is {spec['dtype']}")
        taken.append(array)
    return taken


def same_row(one: Any, other: Any) -> bool:
    """Returns whether both rows are equal; floats may differ as another order of summation makes them.

    The difference is relative to the row's largest value.
    """
    import numpy as np

    one, other = np.atleast_1d(one), np.atleast_1d(other)
    if one.dtype.kind != "f":
        return bool((one == other).all())
    tolerance = ROW_TOLERANCE if one.dtype.itemsize > 2 else HALF_TOLERANCE
    one, other = one.astype("float64"), other.astype("float64")
    finite = np.isfinite(one) & np.isfinite(other)
    if not (finite | (one == other) | (np.isnan(one) & np.isnan(other))).all():
        return False
    largest = max(np.abs(one[finite]).max(initial=0.0), np.abs(other[finite]).max(initial=0.0))
    return bool((np.abs(one[finite] - other[finite]) <= tolerance * largest).all())


def as_array(name: str, value: Any) -> Any:
    """Returns the value as an array. Raises: WrongOutput if it is none, or holds what an array cannot."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype == object and array.ndim == 0:
        kind = type(value).__name__
        raise WrongOutput(f"output {name!r} is a {kind}; it must be an array, or what numpy makes one of")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise WrongOutput(f"output {name!r} has masked values; return .filled(...), so that clients know them as such")
    return array


def fill(target: Any, name: str, array: Any) -> None:
    """The promised tensor holds the array's values. Raises: WrongOutput if a number does not fit its dtype."""
    target[...] = array
    narrower = target.dtype.kind in "iu" and array.dtype.itemsize > target.dtype.itemsize
    if narrower and not (target == array).all():
        raise WrongOutput(
            f"output {name!r} has numbers that {target.dtype} cannot hold; the function's are {array.dtype}"
        )


def describe(raised: BaseException) -> str:
    """Returns type and message of the exception, even if the message cannot be made."""
    try:
        text = str(raised)
    except Exception:
        text = "(its message cannot be made)"
    return f"{type(raised).__name__}: {text}"[:1000]


class Server:
    """Runs batches one after the other, as they are requested."""

    def __init__(self, control: socket.socket, function: Any) -> None:
        self.control = control
        self.function = function
        self.pid = os.getpid()
        self.memory: mmap.mmap | None = None
        self.inputs: list[Spec] = []
        self.outputs: list[Spec] = []

    def serve(self) -> None:
        """Returns when the parent has closed its end."""
        packet, descriptors, _, _ = socket.recv_fds(self.control, PACKET_BYTES_MAX, 1)
        if not packet:
            return
        message = json.loads(packet)
        self.memory = mmap.mmap(descriptors[0], message["bytes"])
        os.close(descriptors[0])
        self.inputs, self.outputs = message["inputs"], message["outputs"]
        while True:
            packet = self.control.recv(PACKET_BYTES_MAX)
            if not packet:
                return
            self.run(json.loads(packet))

    def run(self, message: dict[str, Any]) -> None:
        """Runs one batch. Its outputs are in its slot, or the answer holds the error, whatever the code raised."""
        error, trace = None, ""
        rows, slot = message["rows"], message["at"]
        begin = time.monotonic()
        try:
            arrays = [self.view(spec, rows, slot, writeable=False) for spec in self.inputs]
            try:
                result = call(self.function, self.inputs, arrays)
            finally:
                if os.getpid() != self.pid:  # the code forked, and the child process returned here too
                    os._exit(0)
            for spec, array in zip(self.outputs, take(result, self.outputs, rows)):
                fill(self.view(spec, rows, slot, writeable=True), spec["name"], array)
        except BaseException as raised:  # SystemExit and KeyboardInterrupt too: user code must not end the service
            error = describe(raised)
            trace = traceback.format_exc()[-TEXT_MAX:]
        end = time.monotonic()
        send(
            self.control,
            {"op": "done", "id": message["id"], "begin": begin, "end": end, "error": error, "trace": trace},
        )

    def view(self, spec: Spec, rows: int, slot: int, writeable: bool) -> Any:
        """Returns the tensor in the slot, `[rows, ...]`; read-only for inputs."""
        import numpy as np

        shape = (rows, *spec["shape"][1:])
        array = np.ndarray(shape, spec["dtype"], self.memory, slot + spec["at"])
        array.flags.writeable = writeable
        return array


if __name__ == "__main__":
    sys.exit(main())
