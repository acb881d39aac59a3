"""Versions whose preparation ended the worker: a record on disk, so that the worker that comes back knows.

While a version is prepared there is a file that says so. A worker that finds one knows that the worker before it ended
meanwhile: the version hung the device or broke it, or ended the process. After DEATHS_MAX such ends the version is
refused, until one of its files, the device or what drives it is another, or the record is removed.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from gpu_worker.packages.package import Package
from mesh.codes import PackageCode
from mesh.errors import PackageError

DEATHS_MAX = 2
RECORDS_MAX = 200  # of one device; the oldest go
log = structlog.get_logger("worker")


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What a record says."""

    ref: str
    kind: str  # of the device, with the versions of what drives it
    files: dict[str, tuple[int, int]]  # {name: (bytes, time of change in ns)}
    began_s: float | None = None  # it is being prepared since then, by the wall clock
    deaths: int = 0  # of workers that prepared it
    last_s: float | None = None  # when the last of them had begun

    def same(self, other: "Attempt") -> bool:
        """The same files on the same kind of device."""
        return (self.ref, self.kind, self.files) == (other.ref, other.kind, other.files)


# -- what follows from what. Pure -------------------------------------------------------------------------------------


def begun(found: Attempt | None, wanted: Attempt, *, now: float) -> Attempt | None:
    """The record to write before `wanted` is prepared; None: it has ended too many workers. `found`: what there is."""
    if found is None or not found.same(wanted):
        return msgspec.structs.replace(wanted, began_s=now)
    return None if found.deaths >= DEATHS_MAX else msgspec.structs.replace(found, began_s=now)


def ended(attempt: Attempt, *, well: bool) -> Attempt | None:
    """The record after the preparation has come to an end, with a version or a refusal; None: it is to be removed."""
    return None if well or not attempt.deaths else msgspec.structs.replace(attempt, began_s=None)


def died(found: Attempt) -> Attempt | None:
    """The record once the worker that wrote it is gone; None: it had not been preparing this."""
    if found.began_s is None:
        return None
    return msgspec.structs.replace(found, began_s=None, deaths=found.deaths + 1, last_s=found.began_s)


# -- files ------------------------------------------------------------------------------------------------------------


class Attempts:
    """The records of one device. Its lock is held: no other process has them. Any thread may use it."""

    def __init__(self, folder: Path, device: str, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder / device.replace(":", "-")
        self._device, self._clock = device, clock
        self._running: dict[str, Attempt] = {}  # {ref: its record, as it was written}
        self._closed = False
        self._lock = threading.Lock()  # a record is written, or taken back, and remembered at once

    def open(self) -> None:
        """What a worker before this one was preparing when it ended counts against it."""
        with contextlib.suppress(OSError):
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
            for file in (*files[:-RECORDS_MAX], *self._folder.glob("*.tmp")):
                file.unlink()
            for file in files[-RECORDS_MAX:]:
                found = _read(file)
                dead = died(found) if found is not None else None
                if dead is not None:
                    log.warning("preparation_ended_worker", ref=dead.ref, device=self._device, times=dead.deaths)
                    self._write(dead)

    def begin(self, package: Package, kind: str) -> None:
        """It is on record that the version is being prepared. Raises: PackageError, if it is not to be."""
        wanted = Attempt(ref=package.ref, kind=kind, files=_files(package))
        file = self._file(package.ref)
        found = _read(file)
        attempt = begun(found, wanted, now=self._clock())
        if attempt is None:
            assert found is not None
            raise PackageError(package.ref, [_refusal(found, self._device, file)], PackageCode.ENDED_WORKER)
        with self._lock:
            if not self._closed:
                self._running[package.ref] = attempt
                self._write(attempt)

    def end(self, ref: str, *, well: bool) -> None:
        """The preparation has come to an end, with a version or a refusal."""
        with self._lock:
            attempt = self._running.pop(ref, None)
            if attempt is None:
                return
            left = ended(attempt, well=well)
            if left is not None:
                self._write(left)
                return
            with contextlib.suppress(OSError):
                self._file(ref).unlink()

    def close(self) -> None:
        """The worker ends as it should: what is being prepared, or still will be, has done nothing wrong."""
        self._closed = True
        for ref in list(self._running):
            self.end(ref, well=False)

    def _file(self, ref: str) -> Path:
        return self._folder / f"{ref.replace(':', '@')}.json"

    def _write(self, attempt: Attempt) -> None:
        """On the disk, whole: the machine may be next."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            with os.fdopen(handle, "wb") as out:
                out.write(msgspec.json.format(msgspec.json.encode(attempt)))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, self._file(attempt.ref))
        except OSError as error:
            advice = "if its preparation ends this process, the next one will not know"
            log.warning("preparation_not_recorded", ref=attempt.ref, error=str(error), advice=advice)


def _read(file: Path) -> Attempt | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Attempt)
    except (OSError, msgspec.MsgspecError):
        return None  # what cannot be read says nothing against a version


def _files(package: Package) -> dict[str, tuple[int, int]]:
    """What decides what its preparation does."""
    paths = (package.manifest, package.graph, package.weights_file, package.example_file)
    found = {path.name: _stat(path) for path in paths if path is not None}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items() if stat is not None}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # who reads it will say so


def _refusal(found: Attempt, device: str, file: Path) -> str:
    last = datetime.fromtimestamp(found.last_s or 0.0, UTC).isoformat(" ", "seconds")
    return (
        f"preparing it on {device} ended the worker {found.deaths} times, the last of them begun at {last}: the device "
        f"hung or failed, or the process was killed. To try it again, remove {file} and deploy it"
    )
