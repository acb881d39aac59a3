"""Remembers on disk which versions have passed the checks, so that a worker that returns does not run them again.

An entry holds for everything that the outcome depends on: the version's content, its largest batch and its example, the
kind of device, and the code that checks. Versions that a factory makes are checked by every worker: its code may change
with the content unchanged.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog
import xxhash

from gpu_worker.packages.package import Package
from gpu_worker.packages.stored import ONNX
from mesh.errors import NotWritten
from mesh.process.files import write_whole

CHECKING = ("packages", "devices/execution")  # folders of the code that loads and checks
KEPT_MAX = 4096  # entries, of a few hundred bytes each; the oldest quarter leaves when there are more
Tried = tuple[str, int, str]  # content, batch_max, digest of the example
log = structlog.get_logger("worker")


@dataclass(slots=True)
class PassedChecks:
    """The entries of one kind of device. Only PREPARE's thread uses it."""

    folder: Path
    kind: str
    _code: str = ""  # digest of the code that checks
    _lost: bool = field(default=False)  # an entry could not be written, and that was said

    def has(self, package: Package, tried: Tried) -> bool:
        """Whether an equal version has passed here before, by the same code on the same kind of device."""
        if not _is_graph(package):
            return False
        found = self._entry(tried)
        try:
            return self._file(found).read_bytes() == found
        except OSError:
            return False

    def keep(self, package: Package, tried: Tried) -> None:
        """The version has passed. What cannot be written is checked again next time."""
        if not _is_graph(package):
            return
        entry = self._entry(tried)
        try:
            if not self._file(entry).exists():
                self._make_room()
                write_whole(self._file(entry), entry)
        except (OSError, NotWritten) as error:
            if not self._lost:
                self._lost = True
                advice = "versions are checked again at the next start; this is not said of further ones"
                log.warning("checks_not_kept", ref=package.ref, error=str(error), advice=advice)

    def _entry(self, tried: Tried) -> bytes:
        self._code = self._code or _code()
        content, batch_max, example = tried
        about = {"content": content, "batch_max": batch_max, "example": example, "kind": self.kind, "code": self._code}
        return msgspec.json.format(msgspec.json.encode(about), indent=1)

    def _file(self, entry: bytes) -> Path:
        return self.folder / f"{xxhash.xxh3_128(entry).hexdigest()}.json"

    def _make_room(self) -> None:
        """There are fewer entries than KEPT_MAX. Raises: OSError."""
        if not self.folder.exists():
            return
        found = list(self.folder.glob("*.json"))
        if len(found) < KEPT_MAX:
            return
        oldest = sorted(found, key=lambda file: file.stat().st_mtime)[: KEPT_MAX // 4]
        for file in oldest:
            with contextlib.suppress(FileNotFoundError):  # another worker has removed it
                file.unlink()


def _is_graph(package: Package) -> bool:
    """Whether all code that the version runs is in its own files, and what computes it is part of the kind."""
    return package.graph is not None and package.graph.suffix != ONNX


def _code() -> str:
    """Returns a digest of the code that loads and checks versions."""
    digest = xxhash.xxh3_128()
    here = Path(__file__).parents[2]
    for folder in CHECKING:
        for file in sorted((here / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return str(digest.hexdigest())
