"""Recorded logs: a gearmesh request log (a file or a folder of them), or JSON lines as the simulator reads them."""

from pathlib import Path

import msgspec

from broker import wire
from scripts.journals import arrivals
from scripts.load.errors import LoadError
from scripts.simulation.recorded import Line


def read_lines(source: Path) -> tuple[Line, ...]:
    """The requests of a log, oldest first, the first at 0.

    Raises: LoadError, naming the line; LogError if it is a gearmesh log of another version, or damaged.
    """
    if not source.exists():
        raise LoadError(f"--file {source}: there is no such file")
    if source.is_dir() or _has_header(source):
        lines = [Line(t_s, wire.split_ref(ref)[0], slo_s * 1e3, rows) for t_s, ref, slo_s, rows in arrivals(source)]
    else:
        lines = sorted(_plain_lines(source), key=lambda line: line.t_s)
    if not lines:
        raise LoadError(f"--file {source}: it holds no request")
    first_s = lines[0].t_s
    return tuple(Line(line.t_s - first_s, line.model, line.slo_ms, line.rows) for line in lines)


def _has_header(file: Path) -> bool:
    """True if the first line says that it is a log of something, in some version."""
    with file.open("rb") as lines:
        first = lines.readline(1 << 16)
    try:
        found = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and "version" in found and "t_s" not in found


def _plain_lines(file: Path) -> list[Line]:
    decoder = msgspec.json.Decoder(Line)
    lines = []
    with file.open("rb") as texts:
        for number, text in enumerate(texts, 1):
            if not text.strip():
                continue
            try:
                lines.append(decoder.decode(text))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise LoadError(
                    f"--file {file}: line {number} is neither the header of a gearmesh request log nor a request like "
                    f'{{"t_s": 0.5, "model": "a", "slo_ms": 100}}: {error}'
                ) from error
    return lines
