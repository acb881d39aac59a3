"""`gearmesh doctor`: examines this machine, the settings and the repository, and says what to fix."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from frontend.client.client import Client, RequestError
from gearmesh.cli.terminal.consoles import text_of
from gearmesh.operations.repositories import ask_broker, is_seen, is_the_broker_s
from gpu_worker import tuning
from gpu_worker.devices.images import available_bytes, host_budget
from mesh import wire
from mesh.errors import PackageError
from mesh.process import descriptors
from mesh.process.compiled import PURE, Form, Why, form
from mesh.process.repository import look
from mesh.process.settings import Settings
from mesh.versions import why_changed, why_container

ANSWERS_WITHIN_S = 1.5
UNANSWERED = (
    "no frontend answers: it is stopped, overloaded or out of file descriptors (`descriptors_exhausted` in its log), "
    "it has other keys (GEARMESH_KEYS_DIR), or this is another program (set GEARMESH_FRONTEND_PORT)"
)
SILENT_S = 2.0  # controllers are heard several times a second
SOFTWARE = (  # (grade if it is not installed, package, what needs it, extra that brings it)
    ("bad", "torch", "workers need", "serve"),
    ("bad", "pyzmq", "everything needs", "serve"),
    ("bad", "msgspec", "everything needs", "serve"),
    ("bad", "uvloop", "services need", "serve"),
    ("bad", "numpy", "everything needs", "serve"),
    ("note", "aiohttp", "HTTP needs", "http"),
    ("note", "onnxruntime", "models in ONNX need", "onnx"),
)
FORMS = {  # {why code runs interpreted: what is said of it}
    Why.ASKED: f"{PURE} is set, or was when it was set up",
    Why.NOT_BUILT: "it was never made: scripts/setup, or a wheel for this Python and machine, has it",
    Why.NO_COMPILER: "there was no C compiler, or no headers of Python: install them (Debian: gcc, python3-dev) and "
    "run scripts/setup, or pip install again",
    Why.FAILED: f"compiling failed: run scripts/setup, or pip install again with {PURE}=0, which say why",
    Why.STALE: "run scripts/setup",
}
Finding = tuple[str, str, str]  # (good | note | bad, subject, finding)


def examine(settings: Settings) -> list[Finding]:
    """All findings."""
    return [*_software(), *_machine(settings), *_ports(settings), *examine_repository(settings)]


def findings_table(findings: Iterable[Finding]) -> Table:
    """The findings for people."""
    table = Table("", "what", "how it is")
    marks = {"good": ("good", "green"), "note": ("note", "yellow"), "bad": ("mend", "red")}
    for grade, what, how in findings:
        table.add_row(text_of(marks[grade]), what, how)
    return table


def _software() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info < (3, 14)
    yield "good" if supported else "bad", "python", f"{platform.python_version()} (3.11 to 3.13 are supported)"
    for grade, package, what, extra in SOFTWARE:
        try:
            yield "good", package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield grade, package, f"is not installed; {what} it: pip install 'gearmesh[{extra}]'"
    yield form_finding(form())


def form_finding(found: Form) -> Finding:
    """In which form the code runs here, and how the quicker one is had."""
    if found.compiled:
        return "good", "compiled code", "is used: it was made from these files"
    told = FORMS[found.why]
    if found.changed:
        more = f" and {len(found.changed) - 1} more" if len(found.changed) > 1 else ""
        told = f"{found.changed[0]}{more} changed since it was made: {told}"
    return "note", "compiled code", f"is not used, which costs throughput: {told}"


def _machine(settings: Settings) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    yield "good" if cores >= 2 else "note", "processors", f"{cores}; services, worker and clients share them"
    yield from _torch()
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = soft == resource.RLIM_INFINITY or soft >= 1 << 30
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 20} MiB"
    yield "good" if enough else "note", "locked memory", f"{limit} (pinned weights count; ulimit -l)"
    yield examine_descriptors(settings, descriptors.limit_max())
    usable = tuning.usable_cores()
    yield "good", "cores of a worker", f"{usable}; GEARMESH_CORES binds it to some of them (now: {_cores(settings)})"
    yield "good", "timers", f"slack of a worker's: {tuning.set_timer_slack()}"
    if tuning.may_be_real_time():
        yield "good", "real-time priority", f"allowed; GEARMESH_REAL_TIME is {str(settings.real_time).lower()}"
    else:
        grade = "bad" if settings.real_time else "note"
        yield grade, "real-time priority", "not allowed (ulimit -r), though GEARMESH_REAL_TIME may ask for it"
    budget = host_budget(settings.host_memory_mb)
    enough = budget <= available_bytes()
    yield "good" if enough else "bad", "host memory for weights", f"{budget >> 20} MiB (GEARMESH_HOST_MEMORY_MB)"
    yield _steal()
    yield _disk(settings.data_dir)


def examine_descriptors(settings: Settings, most: int) -> Finding:
    """Whether a frontend, or a gateway, may have a connection for each request that it takes at once.

    `most`: the hard limit of descriptors, to which services raise their own.
    """
    clients, wanted = descriptors.clients_max(most), settings.in_flight_max
    found = f"{most} (ulimit -Hn): {clients} clients of one frontend or gateway"
    if clients >= wanted:
        return "good", "file descriptors", found
    return "note", "file descriptors", f"{found}, fewer than GEARMESH_IN_FLIGHT_MAX ({wanted}); {descriptors.ADVICE}"


def _disk(data_dir: Path) -> Finding:
    """Whether the data folder, or the folder it would be made in, can be written, and how much space is left."""
    there = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return "bad", "disk for data_dir", f"{there} takes no files ({error.strerror}): set GEARMESH_DATA_DIR"
    return "good" if free > 1 << 30 else "bad", "disk for data_dir", f"{free >> 20} MiB free"


def _cores(settings: Settings) -> str:
    return ",".join(map(str, settings.cores)) or "any"


def _torch() -> Iterator[Finding]:
    """What torch can use here; nothing if it is not installed, which `_software` reports."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield "good", "GPUs", names
    else:
        yield "note", "GPUs", "none that torch can use: workers drive the processor"
    yield _compiler()


def _compiler() -> Finding:
    from gpu_worker.devices.execution.compiled import find_compiler

    found = find_compiler()
    if found is None:
        return "note", "C++ compiler", "none: models run eagerly on the cpu"
    return "good", "C++ compiler", f"{found}; GEARMESH_COMPILE_S_MAX above 0 lets models be compiled for the cpu"


def _steal() -> Finding:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:] if Path("/proc/stat").exists() else []
    total = sum(map(int, fields)) or 1
    share = int(fields[7]) / total if len(fields) > 7 else 0.0
    return "good" if share < 0.01 else "note", "time stolen by the host", f"{share:.1%} since boot; tails follow it"


def _ports(settings: Settings) -> Iterator[Finding]:
    keys = settings.keys()
    with Client(settings.frontend_address, keys=keys.for_clients if keys else None) as client:
        try:
            status = client.call("status", timeout_s=ANSWERS_WITHIN_S)
            yield "good", "mesh", f"a frontend answers at {settings.frontend_address}"
            yield from examine_status(status)
            return
        except RequestError:
            if _listens(settings):
                yield "bad", "mesh", f"something listens at {settings.frontend_address}, and {UNANSWERED}"
                return
            yield "note", "mesh", f"nobody answers at {settings.frontend_address}: gearmesh up"
    for name in ("frontend_port", "broker_port", "controller_port", "http_port"):
        port = getattr(settings, name)
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
                yield "good", f"port {port}", "free"
            except OSError as error:
                yield "bad", f"port {port}", f"{error.strerror}: set GEARMESH_{name.upper()}"


def _listens(settings: Settings) -> bool:
    """Whether a connection to the frontend's port is taken."""
    try:
        with socket.create_connection((settings.host, settings.frontend_port), ANSWERS_WITHIN_S):
            return True
    except OSError:
        return False


def examine_status(status: Mapping[str, Any]) -> Iterator[Finding]:
    """What a frontend tells that somebody has to mend."""
    if status["epoch"] is None:
        yield "bad", "broker", "the frontend has not heard of one"
    for controller, seconds in status.get("controllers", {}).items():
        if seconds is None or seconds > SILENT_S:
            told = "has not been heard" if seconds is None else f"is silent for {seconds:.0f} s"
            yield "bad", "controller", f"{controller} {told}"
    turned_away = status.get("accept_failed", 0)
    if turned_away:
        found = f"{turned_away} connections of {status['frontend']} were closed for want of them; {descriptors.ADVICE}"
        yield "bad", "file descriptors", found
    dropped = status.get("lines", {}).get("dropped", 0)
    if dropped:
        yield "note", "logs", f"{dropped} lines of {status['frontend']} were lost: whoever reads its output stood still"


def examine_repository(settings: Settings) -> Iterator[Finding]:
    """For every version in the model repository: whether it can be served, and is the content served under its number.

    If the broker's repository can be reached, that one is examined.
    """
    from gpu_worker.packages.contents import ContentDigests
    from gpu_worker.packages.package import read_package

    repository, told, served = settings.model_repository, ask_broker(settings), dict[str, str]()
    if told is not None and not is_the_broker_s(repository, told):
        why = f"{repository.absolute()} is not what is served: that is {told.repository} on {told.machine}"
        yield "note", "model repository", f"{why} (GEARMESH_MODEL_REPOSITORY)"
    if told is not None and is_seen(told):
        repository = Path(told.repository)
        served = {wire.ref_of(m.name, v): content for m in told.models for v, content in m.contents.items()}
    seen, contents = look(repository), ContentDigests()
    containers = {model.name for model in told.models if model.container} if told is not None and served else set()
    found = {name: versions for name, versions in seen.versions.items() if name not in containers}
    for name in sorted(containers & seen.versions.keys()):
        yield "bad", name, why_container(name, str(repository / name))
    for what, why in seen.faults.items():
        yield "bad", what, why
    if not found and not seen.faults:
        yield (
            "note",
            "models",
            f"none in {repository.absolute()}: `gearmesh import` makes one, or write_package",
        )
    for name, versions in found.items():
        for version in versions:
            ref = wire.ref_of(name, version)
            try:
                package = read_package(repository, ref, settings.factory_allow)
                changed = ref in served and contents.of(package) != served[ref]
            except PackageError as error:
                yield "bad", ref, str(error)
                continue
            if changed:
                yield "bad", ref, why_changed(ref)
            else:
                profiles = len(list((package.folder / "profiles").glob("*.json")))
                yield "good", ref, f"{package.image_bytes / 1e6:.1f} MB, {profiles} profiles"
