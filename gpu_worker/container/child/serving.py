"""Imports the code, tells the parent what it takes and gives, and runs batches one after the other."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from .calling import Caller
from .declaring import NotDeclared, Spec
from .faults import CannotServe, SourceChanged, WrongInput, WrongOutput, describe, may_pass
from .importing import load_as_it_is
from .kinds import OnnxSession, check_arguments, declared_by, guess_inputs, guess_outputs, servable
from .open_batches import OpenBatch
from .results import fill, take
from .samples import Sample, try_sample
from .splitting import split

PACKET_BYTES_MAX = 1 << 16
TEXT_MAX = 8000
ENCODER = json.JSONEncoder(ensure_ascii=False)
OURS = (CannotServe, NotDeclared, WrongOutput, SourceChanged)  # they say all that there is to say: no traceback


def main() -> int:
    """Serves until the parent is gone. Returns the exit code."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()
    try:
        check_interpreter()
        function, ready = prepared(sys.argv[2], json.loads(sys.argv[3]))
    except BaseException as error:
        send(control, {"op": "error", "text": told(error), "passing": may_pass(error)})
        return 1
    send(control, {"op": "ready", **ready})
    Server(control, function).serve()
    return 0


def prepared(target: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns what is called for each batch, and what is known of it. Raises: whatever says why it cannot be served."""
    found, code = load_as_it_is(target)
    function = servable(found, target)
    rows_max = int(options["rows_max"])
    if isinstance(function, OnnxSession):
        function.narrow(options.get("outputs"), rows_max)
    inputs: list[Spec] | None = options.get("inputs") or guess_inputs(function)
    outputs: list[Spec] | None = options.get("outputs") or guess_outputs(function)
    declared = declared_by(function)
    for key, given in options.get("declared", {}).items():  # the command's word counts before the code's
        declared[key] = {**declared.get(key, {}), **given} if isinstance(given, dict) else given
    if inputs and not isinstance(function, OnnxSession):
        check_arguments(function, inputs, target)
    if options.get("sample") is not None:
        inputs, outputs = shown_by_sample(function, options, inputs, outputs, declared)
    return function, {"inputs": inputs, "outputs": outputs, "code": code, "declared": declared}


def shown_by_sample(
    function: Any, options: dict[str, Any], inputs: list[Spec] | None, outputs: list[Spec] | None,
    declared: dict[str, Any],
) -> tuple[list[Spec], list[Spec]]:  # fmt: skip
    """Returns the specs of inputs and outputs: the function ran well on the sample. Raises: as `try_sample`."""
    dims, most = declared.get("dims", {}), int(options["extent_max"])
    pads, told_of = declared.get("pad", {}), {key: declared.get(key, {}) for key in ("owner", "count")}
    padded = [{**spec, "pad": pads.get(spec["name"], 0)} for spec in inputs] if inputs else None
    sample = Sample(options["sample"], padded, dims, most)
    alone = bool(options.get("cache")) and int(options["rows_max"]) > 1
    greatest = [most if name not in dims else dims[name][1] for name in sample.dims]
    if outputs is not None:
        outputs = [{**spec, **{key: of.get(spec["name"], "") for key, of in told_of.items()}} for spec in outputs]
    outputs = try_sample(
        function, sample, outputs, report=bool(options.get("check")), alone=alone,
        most=sample.extents if declared.get("exact") else greatest,
    )  # fmt: skip
    return sample.specs, outputs


def told(error: BaseException) -> str:
    """Returns what the operator has to know: a sentence, or the traceback of the code."""
    if isinstance(error, (CannotServe, NotDeclared)):
        return str(error)[:TEXT_MAX]
    if isinstance(error, OURS) and isinstance(error.__cause__, (*OURS, type(None))):
        return f"{type(error).__name__}: {error}"[:TEXT_MAX]
    return traceback.format_exc()[-TEXT_MAX:]


def check_interpreter() -> None:
    """What every batch needs is imported now, so that the first batch does not wait for it. Raises: CannotServe."""
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise CannotServe(f"{sys.executable} has no numpy, which a container needs: install it there") from error


def die_with_parent() -> None:
    """The kernel ends this process when its parent ends, even if the user code hangs."""
    # not Linux: the closed socket ends the process once the code returns
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def send(control: socket.socket, message: dict[str, Any]) -> None:
    """The message is sent. Its texts are already cut to fit a packet, in whatever script they are."""
    control.send(ENCODER.encode(message).encode(errors="replace"))


class Server:
    """Runs batches one after the other, as they are requested."""

    def __init__(self, control: socket.socket, function: Any) -> None:
        self.control = control
        self.function = function
        self.pid = os.getpid()
        self.memory: mmap.mmap | None = None
        self.inputs: list[Spec] = []
        self.outputs: list[Spec] = []
        self.dims: list[str] = []
        self.room = 0  # bytes of a slot, where batches have sizes of their own
        self.call: Any = None

    def serve(self) -> None:
        """Returns when the parent has closed its end."""
        packet, descriptors, _, _ = socket.recv_fds(self.control, PACKET_BYTES_MAX, 1)
        if not packet:
            return
        message = json.loads(packet)
        self.memory = mmap.mmap(descriptors[0], message["bytes"])
        os.close(descriptors[0])
        self.inputs, self.outputs = message["inputs"], message["outputs"]
        self.dims, self.room = message["dims"], message["room"]
        self.call = Caller(self.function, self.inputs)
        while True:
            packet = self.control.recv(PACKET_BYTES_MAX)
            if not packet:
                return
            self.run(json.loads(packet))

    def run(self, message: dict[str, Any]) -> None:
        """Runs one batch. Its outputs are in its slot, or the answer holds the error, whatever the code raised."""
        error, trace, refused, described = None, "", False, (0, 0)
        begin = time.monotonic()
        try:
            if self.room:
                described = self.run_open(message)
            else:
                self.run_fixed(message["rows"], message["at"])
        except BaseException as raised:  # SystemExit and KeyboardInterrupt too: user code must not end the service
            error, refused = describe(raised), isinstance(raised, WrongInput)
            trace = traceback.format_exc()[-TEXT_MAX:]
        end = time.monotonic()
        done = {"op": "done", "id": message["id"], "begin": begin, "end": end, "error": error, "trace": trace}
        if self.room:
            done.update(refused=refused, described=described)
        send(self.control, done)

    def run_fixed(self, rows: int, slot: int) -> None:
        """Runs a batch whose tensors lie where the layout says."""
        arrays = [self.view(spec, rows, slot, writeable=False) for spec in self.inputs]
        result = self.called(arrays, rows)
        for spec, array in zip(self.outputs, take(result, self.outputs, rows)):
            fill(self.view(spec, rows, slot, writeable=True), spec["name"], array)

    def run_open(self, message: dict[str, Any]) -> tuple[int, int]:
        """Runs a batch that its slot describes. Returns where that describes the outputs, and in how many bytes."""
        assert self.memory is not None
        slot = memoryview(self.memory)[message["at"] : message["at"] + self.room]
        batch = OpenBatch(slot, message["described"], self.inputs, self.dims)
        result = self.called(batch.inputs(), batch.rows)
        return batch.write(self.outputs, split(result, self.outputs, self.dims, batch.parts, batch.extents))

    def called(self, arrays: list[Any], rows: int) -> Any:
        """Returns the function's result."""
        try:
            return self.call(arrays, rows)
        finally:
            if os.getpid() != self.pid:  # the code forked, and the child process returned here too
                os._exit(0)

    def view(self, spec: Spec, rows: int, slot: int, writeable: bool) -> Any:
        """Returns the tensor in the slot, `[rows, ...]`; read-only for inputs."""
        import numpy as np

        shape = (rows, *spec["shape"][1:])
        array = np.ndarray(shape, spec["dtype"], self.memory, slot + spec["at"])
        array.flags.writeable = writeable
        return array
