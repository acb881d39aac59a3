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

    def entry(self, owner: str | None, contents: dict[str, str]) -> wire.ModelEntry:
        """The model in the routing table. `owner`: id of its controller; `contents`: what controllers may serve."""
        return wire.ModelEntry(
            name=self.name,
            current=self.current,
            target=self.target,
            versions=tuple(self.versions),
            owner=owner,
            spec=self.specs.get(self.current) if self.current is not None else None,
            fault=self.unserved or self.fault,
            container=self.container,
            contents=contents,
            tries=self.tries,
            unserved=bool(self.unserved),
            fault_code=self.unserved_code if self.unserved else self.fault_code,
        )

    def known(self) -> wire.KnownModel:
        """The model with the content of every version that was served, for operators."""
        return wire.KnownModel(
            name=self.name,
            current=self.current,
            previous=self.history[-1] if self.history else None,
            contents=dict(self.contents),
            container=self.container,
        )


class AppRecord(msgspec.Struct):
    """One application, as the store keeps it."""

    name: str
    definition: dict[str, Any]
    revision: int = 1
    created: int = 0  # its first revision: a later application of the same name has another one

    def entry(self) -> wire.AppEntry:
        """The application in the routing table."""
        return wire.AppEntry(name=self.name, definition=self.definition, revision=self.revision, created=self.created)
