"""Errors common to all services.

GearmeshError
├── SettingsError      a setting is missing, unknown or out of range (all such faults at once)
├── AddressInUse       a port that a service must listen on is taken
├── UnsafeBind         listening beyond loopback without keys
├── NotWritten         a disk takes a file not; raised by `mesh.process.files`
└── PackageError       a model package that cannot be served (all its faults at once); raised by `gpu_worker.packages`

Expected outcomes (late, full, worker lost) are messages, not errors.
"""

from pathlib import Path

from mesh.codes import PackageCode


class GearmeshError(Exception):
    """Base of errors that a person has to fix; `str()` says what is wrong and how to fix it."""


class SettingsError(GearmeshError):
    """`faults`: one line for each wrong setting, with its name and the values allowed."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "wrong settings:\n" + "\n".join(f"  - {fault}" for fault in self.faults)


class AddressInUse(GearmeshError):
    """`address` is taken by another process; the setting `setting` moves this service elsewhere."""

    def __init__(self, address: str, setting: str, why: str) -> None:
        super().__init__(address, setting, why)
        self.address, self.setting, self.why = address, setting, why

    def __str__(self) -> str:
        return (
            f"cannot listen on {self.address} ({self.why}): stop what holds it, or choose another with {self.setting}"
        )


class UnsafeBind(GearmeshError):
    """`host` is reachable from other machines and no keys are set."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        return (
            f"GEARMESH_HOST={self.host} is reachable from other machines, and anybody there could use the mesh: set "
            "GEARMESH_KEYS_DIR to a folder made by `gearmesh keys FOLDER`, or stay on 127.0.0.1"
        )


class NotWritten(GearmeshError):
    """`file` cannot be written: `why`, in the system's words (`errno`), and `advice`, what a person can do about it."""

    def __init__(self, file: Path, why: str, advice: str, errno: int | None = None) -> None:
        super().__init__(file, why, advice, errno)
        self.file, self.why, self.advice, self.errno = file, why, advice, errno

    def __str__(self) -> str:
        return f"{self.file} cannot be written ({self.why}): {self.advice}"


class PackageError(GearmeshError):
    """`faults`: everything that is wrong with the package at `place`. `code`: the kind of fault, see docs/models.md."""

    def __init__(self, place: str, faults: list[str], code: PackageCode = PackageCode.BAD_PACKAGE) -> None:
        super().__init__(place, faults, code)
        self.place, self.faults, self.code = place, faults, code

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.place} cannot be served ({self.code}): {self.faults[0]}"
        listed = "\n".join(f"  - {fault}" for fault in self.faults)
        return f"{self.place} cannot be served ({self.code}):\n{listed}"
