"""The catalogue's records of models and applications. Later fields have defaults, so that older catalogues open."""

from typing import Any

import msgspec

from mesh import wire


class ModelRecord(msgspec.Struct):
    """One model, as the store keeps it."""

    name: str
    deployed: bool = True
    current: str | None = None
    target: str | None = None
    history: list[str] = []  # earlier current versions, newest last
    versions: list[str] = []  # known, oldest first
    specs: dict[str, wire.ModelSpec] = {}  # of each version that was ever prepared
    fault: str = ""  # why the last deployment failed; empty if it did not
    fault_code: str = ""  # the kind of that fault
    rolling_back: bool = False  # the target is the newest of the history, and will be removed from it
    container: bool = False  # its versions come from containers, not from packages
    builds: dict[str, int] = {}  # {version: how often a first replica of it arrived}
    contents: dict[str, str] = {}  # {version: digest under which it was first served, or first claimed by a container}
    tries: int = 0  # how often operators have asked for a version
    unserved: str = ""  # why no device can prepare the current version; empty if one can
    unserved_code: str = ""  # the kind of that fault


class AppRecord(msgspec.Struct):
    """One application, as the store keeps it."""

    name: str
    definition: dict[str, Any]
    revision: int = 1
    created: int = 0  # its first revision: a later application of the same name has another one
