"""Which models and applications there are, and which version of each model is current. Pure; `store.py` keeps it.

A version goes through: known (in the repository) -> target (being prepared) -> current -> history. The old one stays
current until the new one is prepared, so a deployment never leaves a gap, and a failed one changes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker import wire

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
VERSION = re.compile(r"[0-9]{1,18}")
HISTORY_MAX = 16  # versions that rollback can go back over

Found = Mapping[str, Sequence[str]]  # {model in the repository: its versions}
CallKey = tuple[str, int]  # (peer, its call number)
Replies = list[tuple[CallKey, wire.CallReply]]


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
    rolling_back: bool = False  # the target is the last of the history, to be taken off it
    container: bool = False  # its versions are what containers brought, not packages
    builds: dict[str, int] = {}  # {version: how often its first replica came}


class AppRecord(msgspec.Struct):
    """One application, as the store keeps it."""

    name: str
    definition: dict[str, Any]
    revision: int = 1


@dataclass(slots=True)
class Catalogue:
    """All models and applications. `changed_models` and `changed_apps` name what the store has to write (or delete)."""

    models: dict[str, ModelRecord] = field(default_factory=dict)
    apps: dict[str, AppRecord] = field(default_factory=dict)
    changed_models: set[str] = field(default_factory=set)
    changed_apps: set[str] = field(default_factory=set)
    _dropped: dict[str, int] = field(default_factory=dict)
    _waiting: dict[str, list[CallKey]] = field(default_factory=dict)  # {ref being prepared: who waits for it}
    _replicas: dict[str, dict[str, wire.Offer]] = field(default_factory=dict)  # {ref: {member: what it brought}}

    # -- models -------------------------------------------------------------------------------------------------------

    def scan(self, found: Found) -> None:
        """New packages are deployed, in their newest version; known ones only learn of new versions."""
        for name, versions in found.items():
            model = self.models.get(name)
            if model is None:
                model = self.models[name] = ModelRecord(name)
            if model.container:
                continue  # the name is taken; offers and deployments say so
            if list(versions) != model.versions or (model.deployed and model.current is None):
                model.versions = list(versions)
                if model.deployed and model.current is None and model.target is None and versions:
                    model.target = versions[-1]
                self.changed_models.add(name)

    def deploy(self, key: CallKey, name: str, version: str | None, found: Found) -> Replies:
        """The version (the newest if None) is being prepared; the reply comes when it is current or has failed."""
        versions = self._versions(name, found)
        if not versions and name in self.models and self.models[name].container:
            return [(key, _no(f"no container of {name!r} is running; start one with `gearmesh container`", "name"))]
        if not versions and name in found:
            return [(key, _no(f"package {name!r} has no version: a folder named by a number, such as 1", "name"))]
        if not versions:
            return [(key, _no(f"no package {name!r} in the model repository; there are: {_names(found)}", "name"))]
        if version is not None and version not in versions:
            return [(key, _no(f"model {name!r} has no version {version!r}; it has: {', '.join(versions)}", "version"))]
        model = self.models.setdefault(name, ModelRecord(name))
        if not model.container:
            model.versions = versions
        return self._aim(key, model, version or versions[-1])

    def rollback(self, key: CallKey, name: str) -> Replies:
        """The version that was current before is being prepared; the reply comes as for `deploy`."""
        model = self.models.get(name)
        if model is None or not model.deployed:
            return [(key, _no(f"model {name!r} is not deployed", "name"))]
        if not model.history:
            return [(key, _no(f"model {name!r} has had no version before {model.current!r}", "name"))]
        if model.container and not self._replicas.get(wire.ref_of(name, model.history[-1])):
            text = f"no container of {name!r} version {model.history[-1]} is running; start one with --version"
            return [(key, _no(text, "name"))]
        return self._aim(key, model, model.history[-1], rolling_back=True)

    def undeploy(self, key: CallKey, name: str) -> Replies:
        """New requests for the model are refused from now on."""
        model = self.models.get(name)
        if model is None or not model.deployed:
            return [(key, _no(f"model {name!r} is not deployed; deployed are: {_names(self.deployed())}", "name"))]
        users = sorted(app.name for app in self.apps.values() if name in app.definition.get("models", ()))
        if users:
            return [(key, _no(f"model {name!r} is used by the applications {', '.join(users)}", "name"))]
        replies = self._settle(model, ok=False, message=f"{name} was undeployed")
        if model.current is not None:
            self._remember(model)
        model.deployed, model.current, model.target, model.fault = False, None, None, ""
        self.changed_models.add(name)
        return [*replies, (key, wire.CallReply(call=key[1], ok=True, message=f"{name} is undeployed"))]

    def reported(self, report: wire.PrepareReport) -> Replies:
        """A controller prepared a version, or could not. The target becomes current; nothing else moves."""
        name, version = wire.split_ref(report.ref)
        model = self.models.get(name)
        if model is None or not model.deployed or version not in (model.target, model.current):
            return []
        if model.container:
            pass  # its spec came with the offer
        elif report.ok and report.spec is not None and model.specs.get(version) != report.spec:
            model.specs[version] = report.spec
            self.changed_models.add(name)
        if version != model.target:
            return []
        self.changed_models.add(name)
        if not report.ok:
            model.fault = "; ".join(report.faults)
            return self._settle(model, ok=False, message=f"{report.ref} could not be prepared", faults=report.faults)
        replies = self._settle(model, ok=True, message=f"{report.ref} is current")
        if model.current is None or model.rolling_back:
            if model.history and model.history[-1] == version:
                model.history.pop()
        else:
            self._remember(model)
        model.current, model.fault = version, ""
        return replies

    # -- containers ---------------------------------------------------------------------------------------------------

    def offered(self, member: str, offer: wire.Offer) -> str:
        """A container is there. Its version is prepared if nobody serves the model, or if it is a new one.

        Returns why it cannot be taken, or nothing.
        """
        name, version = wire.split_ref(offer.ref)
        model = self.models.get(name)
        why = self._cannot_take(model, member, offer)
        if why:
            return why
        if model is None:
            model = self.models[name] = ModelRecord(name, container=True)
        replicas = self._replicas.setdefault(offer.ref, {})
        if not replicas:
            model.builds = {**model.builds, version: model.builds.get(version, 0) + 1}
        known = version in model.versions
        replicas[member] = offer
        build = f"{offer.code}.{model.builds[version]}"
        model.specs[version] = msgspec.structs.replace(offer.spec, build=build)
        model.versions = sorted({*model.versions, version}, key=int)
        unserved = model.current is None or not self._replicas.get(wire.ref_of(name, model.current))
        if not model.deployed or (model.current != version and model.target is None and (unserved or not known)):
            self._settle(model, ok=False, message=f"another deployment took over: {offer.ref}")
            model.deployed, model.target, model.fault, model.rolling_back = True, version, "", False
        self.changed_models.add(name)
        return ""

    def withdrawn(self, member: str) -> None:
        """A member that may have been a container is gone."""
        for ref, replicas in list(self._replicas.items()):
            replicas.pop(member, None)
            if not replicas:
                del self._replicas[ref]

    def _cannot_take(self, model: ModelRecord | None, member: str, offer: wire.Offer) -> str:
        name, version = wire.split_ref(offer.ref)
        if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
            return f"a model's name matches {NAME.pattern}, its version {VERSION.pattern}; got {offer.ref!r}"
        if model is not None and not model.container:
            return f"model {name!r} is a package in the model repository: give the container another --model"
        others = [other for key, other in self._replicas.get(offer.ref, {}).items() if key != member]
        if any((other.code, other.spec) != (offer.code, offer.spec) for other in others):
            free = max(int(known) for known in model.versions) + 1 if model is not None else 1
            return (
                f"version {version} of {name!r} is being served by other code ({len(others)} replicas): "
                f"give this one --version {free}, or stop those first"
            )
        return ""

    def _versions(self, name: str, found: Found) -> list[str]:
        """Versions that can be deployed: packages, or those that some container serves."""
        model = self.models.get(name)
        if model is None or not model.container:
            return list(found.get(name, ()))
        return [version for version in model.versions if self._replicas.get(wire.ref_of(name, version))]

    def deployed(self) -> dict[str, ModelRecord]:
        """Models that take requests, or will once they are prepared."""
        return {name: model for name, model in self.models.items() if model.deployed}

    def entries(self, owner_of: Mapping[str, str]) -> tuple[wire.ModelEntry, ...]:
        """The models' part of the routing table; `owner_of`: {model: controller id}."""
        return tuple(
            wire.ModelEntry(
                name=name,
                current=model.current,
                target=model.target,
                versions=tuple(model.versions),
                owner=owner_of.get(name),
                spec=model.specs.get(model.current) if model.current is not None else None,
                fault=model.fault,
                container=model.container,
            )
            for name, model in sorted(self.deployed().items())
        )

    def drop_calls(self, peer: str) -> None:
        """`peer` is gone; its calls go on, but nobody waits for them."""
        for ref, keys in list(self._waiting.items()):
            self._waiting[ref] = [key for key in keys if key[0] != peer]

    def _aim(self, key: CallKey, model: ModelRecord, version: str, *, rolling_back: bool = False) -> Replies:
        ref = wire.ref_of(model.name, version)
        if model.deployed and model.current == version:
            replies = self._settle(model, ok=False, message=f"{ref} stays current: it was deployed again")
            model.target, model.fault = None, ""
            self.changed_models.add(model.name)
            return [*replies, (key, wire.CallReply(call=key[1], ok=True, message=f"{ref} is current already"))]
        replies = []
        if model.target != version:
            replies = self._settle(model, ok=False, message=f"another deployment took over: {ref}")
        model.deployed, model.target, model.fault, model.rolling_back = True, version, "", rolling_back
        self._waiting.setdefault(ref, []).append(key)
        self.changed_models.add(model.name)
        return replies

    def _settle(self, model: ModelRecord, *, ok: bool, message: str, faults: tuple[str, ...] = ()) -> Replies:
        if model.target is None:
            return []
        keys = self._waiting.pop(wire.ref_of(model.name, model.target), [])
        model.target = None
        return [(key, wire.CallReply(call=key[1], ok=ok, message=message, faults=faults)) for key in keys]

    def _remember(self, model: ModelRecord) -> None:
        assert model.current is not None
        model.history = [*model.history, model.current][-HISTORY_MAX:]

    # -- applications -------------------------------------------------------------------------------------------------

    def put_app(self, call: int, definition: dict[str, Any], *, create: bool) -> wire.CallReply:
        """The application is there as defined. Frontends have checked its policy; this checks names and models."""
        name = definition.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return _no(f"an application's name matches {NAME.pattern}; got {name!r}", "app.name", call)
        app = self.apps.get(name)
        if create and app is not None:
            return _no(f"application {name!r} exists already; change it with update_app", "app.name", call)
        if not create and app is None:
            return _no(f"there is no application {name!r}; there are: {_names(self.apps)}", "app.name", call)
        models = definition.get("models")
        if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
            return _no(f"models is a list of names; got {models!r}", "app.models", call)
        unknown = [model for model in definition.get("models", ()) if model not in self.deployed()]
        if unknown:
            there = _names(self.deployed())
            return _no(f"unknown models: {', '.join(map(str, unknown))}; deployed are: {there}", "app.models", call)
        revision = app.revision + 1 if app is not None else self._dropped.pop(name, 0) + 1
        self.apps[name] = AppRecord(name, definition, revision)
        self.changed_apps.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is in effect", revision=revision)

    def drop_app(self, call: int, name: str) -> wire.CallReply:
        """The application is gone."""
        app = self.apps.pop(name, None)
        if app is not None:
            self._dropped[name] = app.revision
        if app is None:
            return _no(f"there is no application {name!r}; there are: {_names(self.apps)}", "app", call)
        self.changed_apps.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is deleted")

    def app_entries(self) -> tuple[wire.AppEntry, ...]:
        """The applications' part of the routing table."""
        return tuple(
            wire.AppEntry(name=app.name, definition=app.definition, revision=app.revision)
            for _, app in sorted(self.apps.items())
        )

    def check(self) -> None:
        """Every invariant holds."""
        for name, model in self.models.items():
            assert model.name == name
            assert model.deployed or (model.current is None and model.target is None)
            assert model.target is None or model.target != model.current
            assert len(model.history) <= HISTORY_MAX
        for ref, keys in self._waiting.items():
            name, version = wire.split_ref(ref)
            assert not keys or self.models[name].target == version, (ref, keys)


def _no(message: str, field_name: str, call: int = 0) -> wire.CallReply:
    return wire.CallReply(call=call, ok=False, message=message, field=field_name)


def _names(things: Mapping[str, object]) -> str:
    return ", ".join(sorted(things)) or "none"
