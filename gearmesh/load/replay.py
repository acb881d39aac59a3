"""Recorded logs: a gearmesh request log (a file or a folder), or JSON lines as the simulator reads them."""

from pathlib import Path

import msgspec

from gearmesh.load.errors import LoadError
from gearmesh.simulation.arrivals.recorded import RecordedRequest, controllers_log


def read_lines(source: Path) -> tuple[RecordedRequest, ...]:
    """The requests of a log, oldest first, the first at 0.

    Raises: LoadError, which names the line; LogError, for a gearmesh log of another version or a damaged one.
    """
    if not source.exists():
        raise LoadError(f"--file {source}: there is no such file")
    lines = controllers_log(source)
    if lines is None:
        lines = sorted(_plain_lines(source), key=lambda line: line.t_s)
    if not lines:
        raise LoadError(f"--file {source}: it holds no request")
    first_s = lines[0].t_s
    return tuple(RecordedRequest(line.t_s - first_s, line.model, line.slo_ms, line.rows) for line in lines)


def _plain_lines(file: Path) -> list[RecordedRequest]:
    decoder = msgspec.json.Decoder(RecordedRequest)
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
