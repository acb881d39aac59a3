"""Runs a container: the function first, so that what is wrong with it is said at once, then the worker around it."""

import os
import signal
import sys

import uvloop

from broker import logs, wire
from broker.config import Settings
from broker.errors import GearmeshError
from broker.runtime import Runtime
from gpu_worker.container.device import ContainerDevice
from gpu_worker.container.process import ChildProcess
from gpu_worker.container.specs import ContainerError, ContainerOptions, lay_out, model_spec
from gpu_worker.service import Fixture, WorkerService

START_S = 60.0  # the code may take so long to be imported
CANNOT = 2  # exit code: it will never serve like this
OUTDATED = 1  # exit code: started again, it will


def run_container(settings: Settings, options: ContainerOptions, *, start_s: float = START_S) -> int:
    """Serves until a signal, or until its code is another one. Returns the exit code; why is on standard error."""
    try:
        options.check()
        logs.set_up(settings, f"container {options.ref}")
        device = ContainerDevice(options, start_s=start_s)
    except GearmeshError as error:
        return _cannot(options, error)
    offer = wire.Offer(ref=options.ref, spec=device.spec, code=device.code)
    fixture = Fixture(offer, options.wording())
    refused: list[str] = []
    outdated: list[str] = []

    def end(why: str) -> None:
        outdated.append(why)
        os.kill(os.getpid(), signal.SIGTERM)

    async def serve() -> None:
        runtime = Runtime(settings)
        service = WorkerService(runtime, device, fixture, refused.append)
        device.on_change(service.changed, end)
        await runtime.run([service])

    try:
        uvloop.run(serve())
    except GearmeshError as error:
        device.close()
        return _cannot(options, error)
    for why in (*refused, *outdated):
        _cannot(options, ContainerError(why))
    return CANNOT if refused else OUTDATED if outdated else 0


def check_container(options: ContainerOptions, *, start_s: float = START_S) -> str | None:
    """Imports the function, runs it on the sample if there is one, and says what would be served.

    Returns the digest of its code; None if it cannot be served: then the reason is on standard error.
    """
    try:
        options.check()
        child = ChildProcess(options, check=True)
        ready = child.wait_ready(start_s)
        child.end()
        spec = model_spec(options, ready["inputs"], ready["outputs"])
        lay_out(spec)
    except GearmeshError as error:
        _cannot(options, error)
        return None
    if child.tail:
        sys.stdout.write(child.tail + "\n")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            sys.stdout.write(f"{kind} {tensor.name}: {tensor.dtype} {list(tensor.shape)}\n")
    if options.sample is None:
        sys.stdout.write("the function was not run: give --sample FILE.npy for that\n")
    code: str = ready["code"]
    return code


def _cannot(options: ContainerOptions, error: GearmeshError) -> int:
    sys.stderr.write(f"container {options.ref} cannot be served:\n{error}\n")
    return CANNOT
