"""What a version is: its content, by a digest. A version never changes; what is otherwise is another version.

Content is all that an answer depends on: the graph, the weights, the inputs, outputs and labels. How it is served
(batch_max, slo_ms, cache, description) and what was measured of it is not.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import msgspec
import xxhash

from gpu_worker.packages.package import EXAMPLE, Digests, Identity, Package
from mesh.codes import PackageCode
from mesh.errors import PackageError

CHUNK_BYTES = 1 << 22
SETTLED_S = 2.0  # a file changed more recently may change again without its times telling; Source: times tick at 4 ms
KNOWN_MAX = 100_000


@dataclass(slots=True)
class Contents:
    """Digests of packages. Files are read whole, once for as long as they stay as they are; links to one count as one.

    All methods raise PackageError where a file cannot be read.
    """

    _known: dict[Identity, str] = field(default_factory=dict)  # {file as it was: its digest}, oldest first

    def of(self, package: Package) -> str:
        """The digest of the version's content, from its files as they are now."""
        return self.digests(package).content

    def digests(self, package: Package) -> Digests:
        """Of the version's files as they are now."""
        parts = self._parts(package)
        weights, weights_as = self._file(package, package.weights_file)
        content = _digest(json.dumps(sorted({**parts, package.weights_file.name: weights}.items())).encode())
        example = package.example_file
        return Digests(content, weights, weights_as, self._file(package, example)[0] if example is not None else "")

    def differing(self, one: Package, other: Package) -> list[str]:
        """The parts of their content in which two packages differ: they are the same version if it is none."""
        return _unequal(self._whole(one), self._whole(other))

    def options_differing(self, one: Package, other: Package) -> list[str]:
        """In what two packages differ that is not their content: how they are served, and their example."""
        return _unequal(self._options(one), self._options(other))

    def _whole(self, package: Package) -> dict[str, object]:
        """{part of the content: its digest}."""
        return self._parts(package) | {package.weights_file.name: self._file(package, package.weights_file)[0]}

    def _parts(self, package: Package) -> dict[str, object]:
        """{part of the content: its digest}, but for the weights."""
        spec = package.spec
        made_by = [package.factory, package.factory_args]
        parts: dict[str, object] = {
            "inputs": _digest(msgspec.json.encode(spec.inputs)),
            "outputs": _digest(msgspec.json.encode(spec.outputs)),
            "labels": _digest(msgspec.json.encode(spec.labels)),
            "architecture": _digest(json.dumps(made_by, sort_keys=True).encode()),
        }
        if package.graph is not None:
            parts[package.graph.name] = self._file(package, package.graph)[0]
        return parts

    def _options(self, package: Package) -> dict[str, object]:
        """{option: value}: what a version has that is not its content."""
        spec, example = package.spec, package.example_file
        return {
            "batch_max": spec.batch_max,
            "slo_ms": spec.slo_ms,
            "cache": spec.cacheable,
            "description": package.description,
            EXAMPLE: self._file(package, example)[0] if example is not None else None,
        }

    def _file(self, package: Package, file: Path) -> tuple[str, Identity]:
        """Its digest, and what it was then."""
        try:
            with file.open("rb", buffering=0) as opened:
                before = os.fstat(opened.fileno())
                found = self._known.get(identity(before))
                if found is not None:
                    return found, identity(before)
                digest = digest_of(opened)
                after = os.fstat(opened.fileno())
                if _bytes_of(after) != _bytes_of(before):
                    raise PackageError(
                        package.ref, [f"{file.name} changes while it is read"], PackageCode.CONTENT_CHANGED
                    )
        except OSError as error:
            raise PackageError(package.ref, [f"{file.name}: {error.strerror}"]) from error
        if time.time() - max(before.st_mtime, after.st_ctime) > SETTLED_S:
            if len(self._known) >= KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[identity(after)] = digest
        return digest, identity(after)


def digests_of(package: Package) -> Digests:
    """As whoever read the package found them, or else as its files are now. Raises: PackageError."""
    return package.digests or Contents().digests(package)


def digest_of(opened: FileIO) -> str:
    """Of all that is in the file. Raises: OSError."""
    digest = xxhash.xxh3_128()
    opened.seek(0)
    while chunk := opened.read(CHUNK_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


def identities(package: Package) -> list[tuple[int, int, int, int]]:
    """Which files, as they are now, the content is read from; equal as long as nobody has written to them.

    Raises: PackageError. Not the time of any change: a link to a file, from a copy of the model, changes that.
    """
    files = [package.weights_file, *([package.graph] if package.graph is not None else [])]
    try:
        return [_bytes_of(file.stat()) for file in files]
    except OSError as error:
        raise PackageError(package.ref, [f"{Path(str(error.filename)).name}: {error.strerror}"]) from error


def _unequal(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def _digest(content: bytes) -> str:
    return str(xxhash.xxh3_128(content).hexdigest())


def identity(stat: os.stat_result) -> Identity:
    """Equal as long as nobody has touched the file: writing to it, and then setting its time back, shows too."""
    return (*_bytes_of(stat), stat.st_ctime_ns)


def _bytes_of(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
