"""Structured logs: JSON lines, or readable lines on a terminal; those that repeat are folded (`mesh/repeats.py`).

Every line of every service comes through here, those of the future, too.
"""

import sys
import threading
import time
from collections.abc import MutableMapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from mesh.printable import printable
from mesh.repeats import LineBudget, LoggedLine, Repeats

if TYPE_CHECKING:
    from mesh.process.output import Output
    from mesh.process.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
PEERS = (  # fields that say who, or what, a line is of: those of one event that agree in them share a budget
    "peer", "member", "worker", "frontend", "client", "controller", "address", "ref", "model", "app", "device",
)  # fmt: skip
BUDGETS = {  # of what has a limit of its own, above that one (gpu_worker/container/process.py)
    event: LineBudget(400, 400) for event in ("printed", "printed_more")
}
PEER_MAX = 256  # characters of each
TEXT_MAX = 16_384  # characters of one field; of a longer one its beginning and its end are kept
Event = MutableMapping[str, Any]


class LogCounts(NamedTuple):
    """What became of this process's log lines since it started."""

    folded: int = 0  # not written, but counted in another line
    dropped: int = 0  # not written, because nobody read them


class Lines:
    """The last of structlog's processors: folds, and renders."""

    def __init__(self, chain: Sequence[structlog.typing.Processor], file: IO[str]) -> None:
        """`chain`: makes text of an event. `file`: where lines go that are told later."""
        self._chain, self._file = chain, file
        self._repeats: Repeats[tuple[str, Event]] = Repeats(BUDGETS)
        self._lock = threading.RLock()
        self._later: threading.Thread | None = None  # there as long as lines are folded

    @property
    def folded(self) -> int:
        """Lines that were not written so far, but counted in another one."""
        return self._repeats.folded

    def __call__(self, logger: object, method: str, event: Event) -> str:
        """The lines to be written. Raises: DropEvent, if there is none."""
        if method == "debug":  # whoever asks for these wants all of them
            return self.rendered(LoggedLine((method, event)))
        name = str(event.get("event", ""))
        peer = " ".join(str(event[field])[:PEER_MAX] for field in PEERS if field in event)
        with self._lock:
            told = self._repeats.said(f"{method} {name}", peer, (method, event), now=_now())
            if not any(each.line[1] is event for each in told):
                event.pop("exc_info", None)  # it would keep alive what the frames hold
                event.update(_cut(None, method, event))
                self._tell_later()
        if not told:
            raise structlog.DropEvent
        return "\n".join(map(self.rendered, told))

    def tell(self) -> None:
        """All that is folded by now is told: the process ends."""
        with self._lock:
            self._write(self._repeats.close(now=_now()))

    def _write(self, told: Sequence[LoggedLine[tuple[str, Event]]]) -> None:
        for each in told:
            self._file.write(self.rendered(each) + "\n")

    def rendered(self, told: LoggedLine[tuple[str, Event]]) -> str:
        """The line as text."""
        method, event = told.line
        if told.folded:
            several = {"several": True} if told.several else {}
            event = {**event, "folded": told.folded, "folded_s": round(told.over_s, 1), **several}
        rendered: Any = event
        for processor in self._chain:
            rendered = processor(None, method, rendered)
        return str(rendered)

    def _tell_later(self) -> None:
        if self._later is None or not self._later.is_alive():  # a child that was forked has no thread
            self._later = threading.Thread(target=self._run, name="folded lines", daemon=True)
            self._later.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._write(self._repeats.wake(now=_now()))
                at = self._repeats.wake_at()
                if at is None:
                    self._later = None
                    return
            time.sleep(max(0.0, at - _now()))


class LineLogger:
    """What structlog writes lines with. It holds no lock: a destructor may log, in the midst of another line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """The line leaves."""
        self._file.write(line + "\n")
        self._file.flush()

    debug = info = warning = error = critical = exception = write


def _now() -> float:
    return time.monotonic()


_current: tuple[Lines, "Output | None"] | None = None  # of this process, as structlog's configuration is


def set_up(settings: "Settings", service: str, output: "Output | None" = None) -> None:
    """Every later log line names the service and goes to `output`; without one to standard output, which may wait for
    its reader.
    """
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
    renderers: list[structlog.typing.Processor]
    if console:
        renderers = [_shown, structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), pad_event_to=28)]
    else:
        renderers = [structlog.processors.JSONRenderer(serializer=_as_json)]

    def named(_logger: object, _method: str, event: Event) -> Event:
        return {**event, "service": service}

    file: IO[str] = output.lines() if output is not None else sys.stdout
    chain: list[structlog.typing.Processor] = [
        named,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cut,
        *renderers,
    ]
    lines = Lines(chain, file)
    structlog.configure(
        processors=[lines],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=lambda *_: LineLogger(file),
        cache_logger_on_first_use=True,
    )
    if output is not None:
        output.last.append(lines.tell)
        output.out.notice = lambda dropped: (
            lines.rendered(LoggedLine(("warning", {"event": "log_lines_dropped", "lines": dropped}))) + "\n"
        )
    global _current
    _current = lines, output


def finish() -> None:
    """All that is folded by now is told."""
    if _current is not None:
        _current[0].tell()


def counts() -> LogCounts:
    """What became of this process's log lines."""
    if _current is None:
        return LogCounts()
    lines, output = _current
    return LogCounts(lines.folded, output.dropped if output is not None else 0)


def _as_json(event: Event, **_: object) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (TypeError, ValueError):  # half a character that clients sent (a surrogate), a key that is no text
        return msgspec.json.encode({str(key): ascii(value) for key, value in event.items()}).decode()


def _shown(_logger: object, _method: str, event: Event) -> Event:
    """What clients and models wrote does not steer the terminal that shows it. (JSON has escapes of its own.)"""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _cut(_logger: object, _method: str, event: Event) -> Event:
    """No field is longer than TEXT_MAX."""
    return {key: _short(value) if isinstance(value, str) else value for key, value in event.items()}


def _short(text: str) -> str:
    if len(text) <= TEXT_MAX:
        return text
    half = TEXT_MAX // 2
    return f"{text[:half]} ({len(text) - TEXT_MAX} characters left out) {text[-half:]}"
