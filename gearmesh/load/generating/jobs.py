"""Messages between the command and its generator processes: JSON lines on their pipes, arrays in files."""

import sys
from pathlib import Path

import msgspec
import numpy as np

from gearmesh.load.generating.schedule import Arrivals, ClosedLoopClients
from gearmesh.load.plan import LoadTarget
from gearmesh.load.reporting.records import RECORD, Records


class StartGenerator(msgspec.Struct, tag="start"):
    """Command -> generator, once: the addresses and models to ask."""

    addresses: list[str]
    targets: list[LoadTarget]
    rows: int
    cache: bool
    distinct_inputs: int
    seed: int
    back_off: bool = False
    keys_dir: str = ""
    sizes: str = ""  # as LoadTestPlan


class Run(msgspec.Struct, tag="run"):
    """Command -> generator: one phase."""

    arrivals: str  # path of the file, see `write_arrivals`
    clients: list[ClosedLoopClients]
    seconds: float
    seed: int
    results: str  # path of the file to write


class Go(msgspec.Struct, tag="go"):
    """Command -> generator, once it has read its share: the phase begins at `start_s`."""

    start_s: float  # of the monotonic clock, which all processes of a host share


class Ready(msgspec.Struct, tag="ready"):
    """Generator -> command: a frontend answers at every address."""


class Loaded(msgspec.Struct, tag="loaded"):
    """Generator -> command: it has read its share of the phase and can begin."""


class Progress(msgspec.Struct, tag="progress"):
    """Generator -> command, twice per second. Counts since the phase began."""

    sent: int
    outcomes: list[int]  # indexed as records.OUTCOMES
    in_flight: int
    late_ms: float  # delay of the last request sent


class Finished(msgspec.Struct, tag="finished"):
    """Generator -> command: the phase is over, and its results are in the file."""

    codes: list[str]
    cpu_s: float  # CPU time of this process in the phase
    stray: int  # answers that came after their requests were given up, or that cannot be read
    broken: int  # number of times that a connection to the mesh was lost
    full: bool  # it could record no more requests, and its clients stopped


class Broken(msgspec.Struct, tag="broken"):
    """Generator -> command: it cannot go on."""

    why: str


FromCommand = StartGenerator | Run | Go
FromGenerator = Ready | Loaded | Progress | Finished | Broken


def write_arrivals(arrivals: Arrivals, file: Path) -> None:
    """Writes the arrivals to the file."""
    columns = ("due_s", "model", "slo_s", "rows", "stream")
    np.savez(file, allow_pickle=False, **{name: getattr(arrivals, name) for name in columns})


def read_arrivals(file: Path) -> Arrivals:
    """The arrivals that `write_arrivals` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        return Arrivals(stored["due_s"], stored["model"], stored["slo_s"], stored["rows"], stored["stream"])


def write_records(records: Records, file: Path) -> None:
    """Writes the records to the file."""
    records.tofile(file)


def read_records(file: Path) -> Records:
    """The records that `write_records` wrote."""
    return np.fromfile(file, RECORD)


def tell(message: FromGenerator) -> None:
    """Writes one line to the command."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()
