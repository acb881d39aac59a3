"""Makes one version ready on a device, from files that do not change while they are read."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_worker.devices.base import Device
from gpu_worker.devices.images import DISK
from gpu_worker.packages.contents import ContentDigests, identities
from gpu_worker.packages.package import Package, read_package
from gpu_worker.profiling import profile_kind, read_profile
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.versions import why_changed


@dataclass(frozen=True, slots=True)
class PreparedVersion:
    """A version that the device can load and execute."""

    package: Package
    profile: wire.Profile | None
    content: str  # digest of the files; empty: the device reads no weights


@dataclass(slots=True)
class Preparer:
    """Reads packages for one device. Runs on the thread for preparations, except for `kind`."""

    repository: Path
    factory_allow: tuple[str, ...]
    device: Device
    contents: ContentDigests = field(default_factory=ContentDigests)

    def prepare(self, ref: str, asked: str) -> PreparedVersion:
        """The version is ready on the device. `asked`: the digest that its content must have; empty: any content.

        Raises: PackageError, or what the package's code raises. Then the caller makes the device forget the version.
        """
        package = self._read(ref)
        self._check_room(package)
        before, content = identities(package), ""
        if self.device.measured:  # an emulated device reads no weights: digests of its hollow files say nothing
            digests = self.contents.digests(package)
            package, content = replace(package, digests=digests), digests.content
            if asked not in ("", content):
                raise PackageError(ref, [why_changed(ref)], PackageCode.CONTENT_CHANGED)
        profile = self.device.prepare(package)
        if content:
            self._check_unchanged(package, before, content)
            if self.device.traits(ref).load_from == DISK:
                _leave_to_the_disk(package.weights_file)
        if profile is None and self.device.measured:
            profile = read_profile(package.folder, self.kind(ref), package.spec, self.device.traits(ref).cells)
        return PreparedVersion(package, profile, content)

    def kind(self, ref: str) -> str:
        """The kind of device, engine and place of the weights for which a profile of this version holds."""
        return profile_kind(self.device.info.kind, self.device.traits(ref))

    def _check_room(self, package: Package) -> None:
        """The weights fit the device, as the header says: nothing of them is read otherwise. Raises: PackageError."""
        info = self.device.info
        pages = package.pages(info.page_bytes)
        if pages > info.pages:
            why = f"its weights take {pages} pages of {info.page_bytes >> 10} KiB; the arena has {info.pages}"
            raise PackageError(package.ref, [f"{why} (GEARMESH_ARENA_MB)"])

    def _read(self, ref: str) -> Package:
        return read_package(self.repository, ref, self.factory_allow)

    def _check_unchanged(self, package: Package, before: object, content: str) -> None:
        """The device has read the files that the digest was made of. Raises: PackageError if they have changed."""
        fault = "its files changed while they were read: deploy it again once they stay as they are"
        try:
            again = self._read(package.ref)
            same = (identities(again), again.layout, self.contents.of(again)) == (before, package.layout, content)
        except PackageError as error:
            raise PackageError(package.ref, [fault, *error.faults], PackageCode.CONTENT_CHANGED) from error
        if not same:
            raise PackageError(package.ref, [fault], PackageCode.CONTENT_CHANGED)


def _leave_to_the_disk(file: Path) -> None:
    """The system keeps no page of the file in memory: each LOAD takes the disk's time, as its estimate says."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
