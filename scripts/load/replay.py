"""Recorded logs: how long they are, which models they name, and whether this version can read them."""

from pathlib import Path

import msgspec

from scripts.load.errors import LoadError
from scripts.simulation.recorded import Line

FORMAT_KEYS = ("format", "version")  # a first line with one of these is a header
FORMATS = (1,)


def read_lines(file: Path) -> list[Line]:
    """The requests of a log, in its order. Raises: LoadError, naming the line, or the format that it has."""
    lines = []
    decoder = msgspec.json.Decoder(Line)
    try:
        texts = file.read_bytes().splitlines()
    except OSError as error:
        raise LoadError(f"--file {file}: {error.strerror}") from error
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        if number == 1:
            _check_header(file, text)
        try:
            lines.append(decoder.decode(text))
        except msgspec.MsgspecError as error:
            if number == 1 and _is_header(text):
                continue
            raise LoadError(
                f'--file {file}: line {number} is no request, like {{"t_s": 0.5, "model": "a", "slo_ms": 100}}: {error}'
            ) from error
    if not lines:
        raise LoadError(f"--file {file}: it holds no request")
    return lines


def _is_header(text: bytes) -> bool:
    try:
        found = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return False
    return isinstance(found, dict) and any(key in found for key in FORMAT_KEYS) and "t_s" not in found


def _check_header(file: Path, text: bytes) -> None:
    if not _is_header(text):
        return
    found = msgspec.json.decode(text)
    format_ = next(found[key] for key in FORMAT_KEYS if key in found)
    if format_ not in FORMATS:
        known = ", ".join(map(str, FORMATS))
        raise LoadError(f"--file {file}: it is a log of format {format_!r}; this version reads format {known}")


def span_s(file: Path) -> float:
    """From the first arrival to just after the last. Raises: LoadError."""
    times = [line.t_s for line in read_lines(file)]
    return max(max(times) - min(times), 0.0) + 1e-3


def models_of(file: Path) -> tuple[str, ...]:
    """The models that the log names, in the order they first occur. Raises: LoadError."""
    return tuple(dict.fromkeys(line.model for line in read_lines(file)))
