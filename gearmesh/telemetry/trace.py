"""`gearmesh trace`: records a running mesh for some seconds and writes the timeline."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from frontend.admin.observer import Observer, Recording
from gearmesh.telemetry.timeline import timeline
from mesh.errors import NotWritten
from mesh.facts import ActionFact, RequestFact
from mesh.process.files import write_whole
from mesh.process.settings import Settings

SECONDS_MAX = 300.0


class TraceError(Exception):
    """The trace cannot be made; `str()` says why and what would be possible."""


def check_target(file: Path, *, force: bool) -> None:
    """Checks that the file can be written. Raises: TraceError."""
    if file.is_dir():
        raise TraceError(f"{file} is a folder; give the name of a file")
    if file.exists() and not force:
        raise TraceError(f"{file} is there already; give another name, or --force to overwrite it")
    if not file.parent.is_dir():
        raise TraceError(f"{file}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise TraceError(f"{file} cannot be written: no permission")


def check_seconds(seconds: float) -> None:
    """Checks that a recording may take this long. Raises: TraceError."""
    if not 0 < seconds <= SECONDS_MAX:
        raise TraceError(f"--seconds must be above 0 and at most {SECONDS_MAX:g}; got {seconds:g}")


def record(settings: Settings, seconds: float, waiting: Callable[[float], None]) -> Recording:
    """The requests and actions that end in the next seconds. Raises: NoMesh."""
    with Observer(settings) as observer:
        return observer.record(seconds, waiting)


def write(recording: Recording, file: Path) -> str:
    """Writes the timeline to the file. Returns a line about it. Raises: TraceError."""
    try:
        write_whole(file, msgspec.json.encode(timeline(recording)))
    except NotWritten as error:
        raise TraceError(f"{file} cannot be written: {error.why}") from error
    facts = [fact for found in recording.facts.values() for fact in found]
    actions = sum(isinstance(fact, ActionFact) for fact in facts)
    requests = sum(isinstance(fact, RequestFact) for fact in facts)
    return f"{file}: {requests} requests and {actions} actions in {recording.ended_s - recording.began_s:.1f} s"
