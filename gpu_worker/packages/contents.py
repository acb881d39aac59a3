"""Identifies a version by a digest of its content. A version never changes: other content is another version.

Content is everything that an answer depends on: the graph, the weights, the inputs, outputs and labels. How the version
is served (batch_max, slo_ms, cache, description) and its measurements are not content.
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

from gpu_worker.packages.package import Digests, Identity, Package, tensors_told
from gpu_worker.packages.reading.files import open_plain
from gpu_worker.packages.stored import EXAMPLE
from mesh.codes import PackageCode
from mesh.errors import PackageError

CHUNK_BYTES = 1 << 22
# a file changed more recently may change again without a change of its times. Source: file times tick at 4 ms
SETTLED_S = 2.0
KNOWN_MAX = 100_000


@dataclass(slots=True)
class ContentDigests:
    """Computes digests of packages. Reads a file whole, and again only after it changed; hard links share one digest.

    All methods raise PackageError if a file cannot be read.
    """

    # {identity of a file when it was read: its digest}, oldest first
    _known: dict[Identity, str] = field(default_factory=dict)

    def of(self, package: Package) -> str:
        """Returns the digest of the version's content, from its files as they are now."""
        return self.digests(package).content

    def digests(self, package: Package) -> Digests:
        """Returns the digests of the version's files as they are now."""
        parts = self._parts(package)
        weights, weights_as = self._file(package, package.weights_file)
        content = _digest(json.dumps(sorted({**parts, package.weights_file.name: weights}.items())).encode())
        example = package.example_file
        return Digests(content, weights, weights_as, self._file(package, example)[0] if example is not None else "")

    def differing(self, one: Package, other: Package) -> list[str]:
        """Returns the parts of the content in which two packages differ; none if they are the same version."""
        return _unequal(self._whole(one), self._whole(other))

    def options_differing(self, one: Package, other: Package) -> list[str]:
        """Returns the options in which two packages differ: how they are served, and their example.

        Options are not content.
        """
        return _unequal(self._options(one), self._options(other))

    def _whole(self, package: Package) -> dict[str, object]:
        """Returns {part of the content: its digest}."""
        return self._parts(package) | {package.weights_file.name: self._file(package, package.weights_file)[0]}

    def _parts(self, package: Package) -> dict[str, object]:
        """Returns {part of the content: its digest}, without the weights."""
        spec = package.spec
        made_by = [package.factory, package.factory_args]
        parts: dict[str, object] = {
            "inputs": _digest(tensors_told(spec.inputs)),
            "outputs": _digest(tensors_told(spec.outputs)),
            "labels": _digest(msgspec.json.encode(spec.labels)),
            "architecture": _digest(json.dumps(made_by, sort_keys=True).encode()),
        }
        if spec.dims:
            parts["dims"] = _digest(msgspec.json.encode([spec.dims, spec.exact]))
        if package.graph is not None:
            parts[package.graph.name] = self._file(package, package.graph)[0]
        return parts

    def _options(self, package: Package) -> dict[str, object]:
        """Returns {option: value}: everything of a version that is not its content."""
        spec, example = package.spec, package.example_file
        return {
            "batch_max": spec.batch_max,
            "slo_ms": spec.slo_ms,
            "cache": spec.cacheable,
            "description": package.description,
            EXAMPLE: self._file(package, example)[0] if example is not None else None,
        }

    def _file(self, package: Package, file: Path) -> tuple[str, Identity]:
        """Returns the file's digest, and its identity at the time of reading."""
        try:
            with open_plain(file) as opened:
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
    """Returns the digests that were taken when the package was read, else those of its files now.

    Raises: PackageError.
    """
    return package.digests or ContentDigests().digests(package)


def digest_of(opened: FileIO) -> str:
    """Returns the digest of the whole file. Raises: OSError."""
    digest = xxhash.xxh3_128()
    opened.seek(0)
    while chunk := opened.read(CHUNK_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


def identities(package: Package) -> list[tuple[int, int, int, int]]:
    """Returns the identities of the files that hold the content; equal as long as nobody has written to them.

    The change time is left out: a hard link to a file, from a copy of the model, changes it. Raises: PackageError.
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
    """Returns an identity that is equal as long as nobody has touched the file.

    Writing to the file and then setting its time back changes the identity too, through the change time.
    """
    return (*_bytes_of(stat), stat.st_ctime_ns)


def _bytes_of(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
