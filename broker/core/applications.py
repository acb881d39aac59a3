"""The applications of the mesh: their definitions, and a revision for each that changes with it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from broker.core.records import AppRecord
from broker.core.refusals import refusal
from mesh import wire
from mesh.codes import ReplyCode
from mesh.names import NAME, listed


@dataclass(slots=True)
class ApplicationRecords:
    """All applications. `changed` names the records that the store has to write or delete."""

    records: dict[str, AppRecord] = field(default_factory=dict)
    revisions: int = 0  # given to all applications so far: no two get the same one
    changed: set[str] = field(default_factory=set)

    def put(self, call: int, definition: dict[str, Any], *, create: bool, deployed: Collection[str]) -> wire.CallReply:
        """The application is stored as defined. Checks names and models; frontends have checked the policy already.

        `deployed`: names of the models that are.
        """
        name = definition.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            text = f"an application's name matches {NAME.pattern}; got {str(name)[:64]!r}"
            return refusal(text, "app.name", call, ReplyCode.BAD_APP)
        app = self.records.get(name)
        if create and app is not None:
            text = f"application {name[:64]!r} exists already; change it with update_app"
            return refusal(text, "app.name", call, ReplyCode.APP_EXISTS)
        if not create and app is None:
            text = f"there is no application {name[:64]!r}; there are: {listed(self.records)}"
            return refusal(text, "app.name", call, ReplyCode.UNKNOWN_APP)
        models = definition.get("models")
        if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
            return refusal(
                f"models is a list of names; got {str(models)[:100]!r}", "app.models", call, ReplyCode.BAD_APP
            )
        unknown = [model for model in definition.get("models", ()) if model not in deployed]
        if unknown:
            text = f"unknown models: {', '.join(map(str, unknown))}; deployed are: {listed(deployed)}"
            return refusal(text, "app.models", call, ReplyCode.BAD_APP)
        revision = self.revisions = self.revisions + 1
        self.records[name] = AppRecord(name, definition, revision, app.created if app is not None else revision)
        self.changed.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is in effect", revision=revision)

    def drop(self, call: int, name: str) -> wire.CallReply:
        """The application is deleted."""
        app = self.records.pop(name, None)
        if app is None:
            text = f"there is no application {name[:64]!r}; there are: {listed(self.records)}"
            return refusal(text, "app", call, ReplyCode.UNKNOWN_APP)
        self.changed.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is deleted")

    def entries(self) -> tuple[wire.AppEntry, ...]:
        """The applications' part of the routing table."""
        return tuple(app.entry() for _, app in sorted(self.records.items()))

    def users_of(self, model: str) -> list[str]:
        """The names of the applications that ask this model, sorted."""
        return sorted(app.name for app in self.records.values() if model in app.definition.get("models", ()))
