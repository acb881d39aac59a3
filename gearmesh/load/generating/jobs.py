"""What the command and its generator processes tell each other: JSON lines on their pipes, arrays in files."""

from pathlib import Path

import msgspec
import numpy as np

from gearmesh.load.generating.schedule import Arrivals, Clients
from gearmesh.load.plan import Target
from gearmesh.load.reporting.records import RECORD, Records


class Start(msgspec.Struct, tag="start"):
    """Command -> generator, once: whom to ask, and what."""

    addresses: list[str]
    targets: list[Target]
    rows: int
    cache: bool
    distinct_inputs: int
    seed: int
    back_off: bool = False
    keys_dir: str = ""


class Run(msgspec.Struct, tag="run"):
    """Command -> generator: one phase."""

    arrivals: str  # file, see `write_arrivals`
    clients: list[Clients]
    seconds: float
    seed: int
    results: str  # file to write


class Go(msgspec.Struct, tag="go"):
    """Command -> generator, once it has read its share: when the phase begins."""

    start_s: float  # of the monotonic clock, which processes of one host share


class Ready(msgspec.Struct, tag="ready"):
    """Generator -> command: somebody answers at every address."""


class Loaded(msgspec.Struct, tag="loaded"):
    """Generator -> command: it has read its share of the phase, and can begin."""


class Progress(msgspec.Struct, tag="progress"):
    """Generator -> command, twice a second. Counts since the phase began."""

    sent: int
    outcomes: list[int]  # by records.OUTCOMES
    in_flight: int
    late_ms: float  # of the last request sent, behind its time


class Finished(msgspec.Struct, tag="finished"):
    """Generator -> command: the phase is over, and its results are in the file."""

    codes: list[str]
    cpu_s: float  # that this process has used in the phase
    stray: int  # answers that came after the generator had given up on them, or that it cannot read
    broken: int  # times that a connection to the mesh was lost
    full: bool  # it could note no more requests, and its clients stopped asking


class Broken(msgspec.Struct, tag="broken"):
    """Generator -> command: it cannot go on."""

    why: str


FromCommand = Start | Run | Go
FromGenerator = Ready | Loaded | Progress | Finished | Broken


def write_arrivals(arrivals: Arrivals, file: Path) -> None:
    """The arrivals are in the file."""
    columns = ("due_s", "model", "slo_s", "rows", "stream")
    np.savez(file, allow_pickle=False, **{name: getattr(arrivals, name) for name in columns})


def read_arrivals(file: Path) -> Arrivals:
    """What `write_arrivals` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        return Arrivals(stored["due_s"], stored["model"], stored["slo_s"], stored["rows"], stored["stream"])


def write_records(records: Records, file: Path) -> None:
    """The rows are in the file."""
    records.tofile(file)


def read_records(file: Path) -> Records:
    """What `write_records` wrote."""
    return np.fromfile(file, RECORD)
