"""Runs a container: the process of its code, and the worker around it."""

import os
import sys

from gpu_worker.container.layouts import lay_out
from gpu_worker.container.process import ChildProcess
from gpu_worker.container.promises import content_of, model_spec
from gpu_worker.container.service import CANNOT, ContainerService
from gpu_worker.container.specs import ContainerError, ContainerOptions
from mesh import wire
from mesh.errors import GearmeshError
from mesh.printable import printable
from mesh.process.readiness import take_ready_signal
from mesh.process.runtime import Runtime, begin
from mesh.process.settings import Settings

START_S = 60.0  # time limit for importing the code


def run_container(settings: Settings, options: ContainerOptions, *, start_s: float = START_S) -> int:
    """Serves until a signal, or until the code has changed. Returns the exit code; the reason is on standard error."""
    ready = take_ready_signal(os.environ)

    async def serve() -> tuple[int, str]:
        runtime = Runtime(settings)
        service = ContainerService(runtime, options, ready, start_s=start_s)
        return await runtime.run([service]), service.why

    try:
        options.check()
        code, why = begin(settings, f"container {options.ref}").run(serve())
    except GearmeshError as error:
        return _cannot(options, error)
    if why:
        _cannot(options, ContainerError(why))
    return code


def check_container(options: ContainerOptions, *, start_s: float = START_S) -> str | None:
    """Imports the function, runs it on the sample if there is one, and prints what would be served.

    Returns the content's digest; None if it cannot be served, with the reason on standard error.
    """
    try:
        options.check()
        child = ChildProcess(options, check=True)
        ready = child.wait_ready(start_s)
        child.end()
        spec = model_spec(options, ready["inputs"], ready["outputs"], ready["declared"])
        lay_out(spec)
    except GearmeshError as error:
        _cannot(options, error)
        return None
    if child.tail:
        sys.stdout.write(printable(child.tail) + "\n")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            sys.stdout.write(printable(f"{kind} {tensor.name}: {tensor.dtype} {_shape(tensor)}\n"))
    for dim in spec.dims:
        sys.stdout.write(printable(f"open dimension {dim.name}: {dim.least} to {dim.most}\n"))
    if options.sample is None:
        sys.stdout.write("the function was not run: give --sample FILE.npy for that\n")
    return content_of(ready["code"], spec)


def _shape(tensor: wire.TensorSpec) -> str:
    names = tensor.dims or ("",) * (len(tensor.shape) - 1)
    extents = (name or str(extent) for name, extent in zip(names, tensor.shape[1:], strict=True))
    return f"[{', '.join(('-1', *extents))}]"


def _cannot(options: ContainerOptions, error: GearmeshError) -> int:
    sys.stderr.write(printable(f"container {options.ref} cannot be served:\n{error}\n"))
    return CANNOT
