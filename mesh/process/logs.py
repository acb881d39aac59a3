"""Structured logs: JSON lines, or readable ones on a terminal."""

import sys
from typing import TYPE_CHECKING

import msgspec
import structlog

from mesh.printable import printable

if TYPE_CHECKING:
    from mesh.process.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up(settings: "Settings", service: str) -> None:
    """Every later log line names the service and goes to standard output."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
    renderers: list[structlog.typing.Processor]
    if console:
        renderers = [_shown, structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), pad_event_to=28)]
    else:
        as_json = structlog.processors.JSONRenderer(serializer=lambda event, **_: msgspec.json.encode(event).decode())
        renderers = [as_json]

    def named(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "service": service}

    structlog.configure(
        processors=[
            named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _shown(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What clients and models wrote does not steer the terminal that shows it. (JSON has escapes of its own.)"""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
