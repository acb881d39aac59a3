"""Reads the request logs and action logs that controllers keep (docs/telemetry.md)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from gearmesh.telemetry.endings import amended
from mesh.errors import GearmeshError
from mesh.facts import LOG_VERSION, LOG_VERSIONS, ActionFact, AmendedFact, Dropped, Header, RequestFact
from mesh.sizes import Extents

F = TypeVar("F", RequestFact, ActionFact)
KINDS: dict[str, Any] = {"requests": RequestFact | AmendedFact, "actions": ActionFact}


class LogError(GearmeshError):
    """A log cannot be read; `str()` names the line, and what would be right."""


@dataclass(slots=True)
class JournalLog(Generic[F]):
    """One log of one life of a controller, in the order in which requests or actions ended."""

    headers: list[Header] = field(default_factory=list)  # of its files, oldest first; all of one controller
    facts: list[F] = field(default_factory=list)
    dropped: int = 0  # lines that the controller could not write, as it recorded itself
    cut: int = 0  # last lines that are incomplete because the controller was killed


def read_requests(source: Path) -> list[JournalLog[RequestFact]]:
    """The request logs in a file or a folder, one for each life of a controller, oldest first.

    Each request has the outcome that its client saw, also where that was known only after its line was written.

    Raises: LogError, if there is none, or one has another version or a line that is not valid.
    """
    return _read(source, "requests")


def read_actions(source: Path) -> list[JournalLog[ActionFact]]:
    """The action logs in a file or a folder, one for each life of a controller, oldest first. Raises: LogError."""
    return _read(source, "actions")


def arrivals(source: Path) -> Iterator[tuple[float, str, float, int, Extents]]:
    """(arrival_s, model ref, slo_s, rows, extents) of every request in the log, by arrival; the first arrives at 0.

    `source`: one file of a request log, or a folder of them. All requests count, whatever their outcomes. Several
    controllers, or several lives of one, are put on one time axis by the time of day in their headers. The whole log is
    held in memory.
    Raises: LogError.
    """
    found: list[tuple[float, str, float, int, Extents]] = []
    for log in read_requests(source):
        to_unix_s = log.headers[0].unix_s - log.headers[0].clock_s
        found.extend((f.arrived_s + to_unix_s, f.ref, round(f.slo_s, 9), f.rows, f.extents) for f in log.facts)
    found.sort()
    first_s = found[0][0] if found else 0.0
    for arrived_s, ref, slo_s, rows, extents in found:
        yield arrived_s - first_s, ref, slo_s, rows, extents


def kind_of(file: Path) -> str:
    """The kind of log: requests | actions. Raises: LogError."""
    header = _first_line(file, _bytes(file).split(b"\n", 1)[0], "request or action")
    if header["log"] not in KINDS:
        raise LogError(f"{file}: this is a log of {str(header['log'])[:32]!r}; there are: {', '.join(KINDS)}")
    return str(header["log"])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error


def _read(source: Path, kind: str) -> list[JournalLog[Any]]:
    paths = sorted(source.glob(f"{kind}-*.jsonl")) if source.is_dir() else [source]
    if not paths:
        raise LogError(f"{source}: there is no {kind}-*.jsonl here; controllers write them into telemetry_dir")
    logs: dict[str, JournalLog[Any]] = {}
    for path in paths:
        lines = _bytes(path).split(b"\n")
        header = _header(path, lines[0], kind)
        log = logs.setdefault(header.controller, JournalLog())
        log.headers.append(header)
        _lines(path, lines, KINDS[kind], log)
    for log in logs.values():
        log.facts = amended(log.facts)
    return sorted(logs.values(), key=lambda log: log.headers[0].unix_s)


def _first_line(path: Path, line: bytes, kind: str) -> dict[str, Any]:
    """The header of a log of this kind and version, as a map. Raises: LogError."""
    try:
        header = msgspec.json.decode(line)
        version, _ = header["version"], header["log"]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError):
        wanted = f"it must begin with the header of a gearmesh {kind} log of version {LOG_VERSION}"
        raise LogError(f"{path}: line 1: this is no gearmesh log: {wanted}") from None
    if version not in LOG_VERSIONS:
        known = " and ".join(map(str, LOG_VERSIONS))
        text = f"this log has version {version!r}; this gearmesh reads {known}: use the one that wrote it"
        raise LogError(f"{path}: {text}")
    return dict(header)


def _header(path: Path, line: bytes, kind: str) -> Header:
    header = _first_line(path, line, kind)
    if header["log"] != kind:
        raise LogError(f"{path}: this is a log of {str(header['log'])[:32]!r}, not of {kind}")
    try:
        return msgspec.convert(header, Header)
    except msgspec.ValidationError as error:
        raise LogError(f"{path}: line 1: {error}") from None


def _lines(path: Path, lines: list[bytes], kind: Any, log: JournalLog[Any]) -> None:
    decoder = msgspec.json.Decoder(kind | Dropped)
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines) and line:
            log.cut += 1  # every complete line ends in a newline
            continue
        if not line:
            continue
        try:
            fact = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LogError(f"{path}: line {number}: {error}") from None
        if isinstance(fact, Dropped):
            log.dropped += fact.count
        else:
            log.facts.append(fact)
