"""What the catalogue keeps of each model and application. Fields have defaults: older catalogues open."""

from typing import Any

import msgspec

from mesh import wire


class ModelRecord(msgspec.Struct):
    """One model, as the store keeps it."""

    name: str
    deployed: bool = True
    current: str | None = None
    target: str | None = None
    history: list[str] = []  # versions that were current before, newest last
    versions: list[str] = []  # known, oldest first
    specs: dict[str, wire.ModelSpec] = {}  # of versions that were prepared once
    fault: str = ""  # why the last deployment failed; empty after one that did not
    fault_code: str = ""  # of which kind that is
    rolling_back: bool = False  # the target is the last of the history, to be taken off it
    container: bool = False  # its versions are what containers brought, not packages
    builds: dict[str, int] = {}  # {version: how often its first replica came}
    contents: dict[str, str] = {}  # {version: digest under which it was first served; of a container's, first claimed}
    tries: int = 0  # how often operators have asked for a version
    unserved: str = ""  # why no device can prepare the current version, where none can
    unserved_code: str = ""  # of which kind that is


class AppRecord(msgspec.Struct):
    """One application, as the store keeps it."""

    name: str
    definition: dict[str, Any]
    revision: int = 1
    created: int = 0  # its first revision: another application that takes its name later has another one
