"""The models and applications of the mesh, and the current version of each model. Pure; `store.py` writes it to disk.

A version goes through: known (in the repository) -> target (being prepared) -> current -> history. The old version
stays current until the new one is prepared, so a deployment never interrupts service, and a failed one changes nothing.

A version number stands for one content. The catalogue records the content that is first served under a number, and
nothing else is ever served under it: a controller serves a version read from files only if its digest is the one in the
routing table, so it serves no version whose content the catalogue has not recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.core.records import AppRecord, ModelRecord
from mesh import wire
from mesh.codes import PackageCode, ReplyCode
from mesh.names import NAME, VERSION, listed
from mesh.versions import next_free, number_of, why_changed, why_container, why_exists

HISTORY_MAX = 16  # versions that a rollback can return to

Found = Mapping[str, Sequence[str]]  # {model in the repository: its versions}
CallKey = tuple[str, int]  # (peer, its call number)
Replies = list[tuple[CallKey, wire.CallReply]]


@dataclass(slots=True)
class Catalogue:
    """All models and applications.

    `changed_models` and `changed_apps` name the records that the store has to write or delete.
    """

    models: dict[str, ModelRecord] = field(default_factory=dict)
    apps: dict[str, AppRecord] = field(default_factory=dict)
    changed_models: set[str] = field(default_factory=set)
    changed_apps: set[str] = field(default_factory=set)
    revisions: int = 0  # given to all applications so far: no two get the same one
    repository: str = "the model repository"  # where packages are looked for; for error messages
    _waiting: dict[str, list[CallKey]] = field(default_factory=dict)  # {ref being prepared: calls that wait for it}
    _replicas: dict[str, dict[str, wire.Offer]] = field(default_factory=dict)  # {ref: {member: its offer}}
    _proposed: dict[str, str] = field(
        default_factory=dict
    )  # {ref being prepared: digest, recorded once the version is current}

    # -- models -------------------------------------------------------------------------------------------------------

    def scan(self, found: Found) -> None:
        """New packages are deployed, each in its newest version. Known packages get their new versions, undeployed."""
        for name, versions in found.items():
            model = self.models.get(name)
            if model is None:
                model = self.models[name] = ModelRecord(name)
            if model.container:
                continue  # the name is taken: a deploy of the package gets the error
            if list(versions) != model.versions or (model.deployed and model.current is None):
                model.versions = list(versions)
                if model.deployed and model.current is None and model.target is None and versions:
                    model.target = versions[-1]
                self.changed_models.add(name)

    def deploy(
        self, key: CallKey, name: str, version: str | None, found: Found, faults: Mapping[str, str] | None = None
    ) -> Replies:
        """The version (None: the newest) is being prepared. The reply comes once the version is current or its
        preparation failed.

        `faults`: {package, or ref of a version: why it is not a valid one, although its folder looks like one}.
        """
        why = self._cannot_deploy(name, version, found, faults or {})
        if why is not None:
            return [(key, why)]
        versions = self._versions(name, found)
        model = self.models.setdefault(name, ModelRecord(name))
        if not model.container:
            model.versions = versions
        return self._aim(key, model, version or versions[-1])

    def _cannot_deploy(
        self, name: str, version: str | None, found: Found, faults: Mapping[str, str]
    ) -> wire.CallReply | None:
        versions = self._versions(name, found)
        model = self.models.get(name)
        if model is not None and model.container:
            if name in found and (not versions or (version is not None and version not in versions)):
                text = why_container(name, f"{self.repository}/{name}")
                return _no(text, "name", code=PackageCode.NAME_TAKEN)
            if not versions:
                text = f"no container of {name!r} is running; start one with `gearmesh container`"
                return _no(text, "name", code=ReplyCode.NO_REPLICA)
        elif fault := self._fault(name, version, versions, faults):
            field_name = "version" if versions or version is not None else "name"
            return _no(fault, field_name, code=PackageCode.BAD_PACKAGE)
        elif not versions and name in found:
            text = f"package {name!r} has no version: a folder named by a number, such as 1"
            return _no(text, "name", code=ReplyCode.NO_VERSION)
        elif not versions:
            text = f"no package {name!r} in {self.repository}; there are: {listed(found)}"
            return _no(text, "name", code=ReplyCode.UNKNOWN_MODEL)
        if version is not None and version not in versions:
            text = f"model {name!r} has no version {version!r}; it has: {', '.join(versions)}"
            return _no(text, "version", code=ReplyCode.UNKNOWN_VERSION)
        return None

    @staticmethod
    def _fault(name: str, version: str | None, versions: Sequence[str], faults: Mapping[str, str]) -> str | None:
        """Why the version (None: the newest) is not valid although its folder looks like one; None if it has no known
        fault.
        """
        if version is not None:
            return faults.get(wire.ref_of(name, version)) or faults.get(name)
        odd = [number for ref in faults for of, number in [wire.split_ref(ref)] if of == name]
        newest = max([*versions, *odd], key=int, default=None)
        return faults.get(wire.ref_of(name, newest)) if newest is not None else faults.get(name)

    def rollback(self, key: CallKey, name: str, version: str | None = None) -> Replies:
        """The previously current version is being prepared. The reply comes as for `deploy`.

        `version`: the previous version as the operator last saw it. If another one is previous by now, nothing changes.
        """
        model = self.models.get(name)
        if model is None or not model.deployed:
            return [(key, _no(f"model {name!r} is not deployed", "name", code=ReplyCode.NOT_DEPLOYED))]
        if version is not None and version == model.current and not (model.target or model.unserved):
            text = f"{wire.ref_of(name, version)} is current already"
            return [(key, wire.CallReply(call=key[1], ok=True, message=text))]
        if not model.history:
            text = f"model {name!r} has had no version before {model.current!r}"
            return [(key, _no(text, "name", code=ReplyCode.NO_PREVIOUS))]
        if version is not None and version != model.history[-1]:
            text = f"the version before {model.current!r} of {name!r} is {model.history[-1]!r} by now, not {version!r}"
            return [(key, _no(text, "version", code=ReplyCode.PREVIOUS_CHANGED))]
        if model.container and not self._replicas.get(wire.ref_of(name, model.history[-1])):
            text = f"no container of {name!r} version {model.history[-1]} is running; start one with --version"
            return [(key, _no(text, "name", code=ReplyCode.NO_REPLICA))]
        return self._aim(key, model, model.history[-1], rolling_back=True)

    def undeploy(self, key: CallKey, name: str) -> Replies:
        """New requests for the model are refused from now on."""
        model = self.models.get(name)
        if model is None or not model.deployed:
            text = f"model {name!r} is not deployed; deployed are: {listed(self.deployed())}"
            return [(key, _no(text, "name", code=ReplyCode.NOT_DEPLOYED))]
        users = sorted(app.name for app in self.apps.values() if name in app.definition.get("models", ()))
        if users:
            text = f"model {name!r} is used by the applications {', '.join(users)}"
            return [(key, _no(text, "name", code=ReplyCode.IN_USE))]
        replies = self._settle(model, ok=False, message=f"{name} was undeployed", code=ReplyCode.UNDEPLOYED)
        replies += self._current_leaves(model, f"{name} was undeployed", ReplyCode.UNDEPLOYED)
        if model.current is not None:
            self._remember(model)
        model.deployed, model.current, model.target = False, None, None
        model.fault = model.fault_code = ""
        self.changed_models.add(name)
        return [*replies, (key, wire.CallReply(call=key[1], ok=True, message=f"{name} is undeployed"))]

    def reported(self, report: wire.PrepareReport) -> Replies:
        """Takes in a controller's report: it prepared a version, or could not. A prepared target becomes current."""
        name, version = wire.split_ref(report.ref)
        model = self.models.get(name)
        if model is None or not model.deployed or version not in (model.target, model.current):
            return []
        if not report.ok and report.tries and report.tries != model.tries:
            return []  # the report answers an earlier attempt; the version has been asked for again since
        if report.ok and not model.container:
            if self.differs(report):
                why = why_changed(report.ref)
                report = wire.PrepareReport(ref=report.ref, ok=False, faults=(why,), code=PackageCode.CONTENT_CHANGED)
            elif report.spec is not None and model.specs.get(version) != report.spec:
                model.specs[version] = report.spec
                self.changed_models.add(name)
            self._take_down(model, version, report.content)
        if version == model.target:
            return self._target_reported(model, version, report)
        return self._current_reported(model, report)

    def differs(self, report: wire.PrepareReport) -> bool:
        """Whether the prepared content differs from the content that is served under this version number."""
        name, version = wire.split_ref(report.ref)
        model = self.models.get(name)
        known = model.contents.get(version) or self._proposed.get(report.ref) if model is not None else None
        return bool(report.ok and report.content and known) and known != report.content

    def _take_down(self, model: ModelRecord, version: str, content: str) -> None:
        """Records the version's content: for the current version at once, for a target once it becomes current."""
        if not content or version in model.contents:
            return
        self.changed_models.add(model.name)  # the routing table carries it
        if version == model.target:
            self._proposed.setdefault(wire.ref_of(model.name, version), content)
        else:
            model.contents[version] = content

    def _target_reported(self, model: ModelRecord, version: str, report: wire.PrepareReport) -> Replies:
        if not report.ok:
            self.changed_models.add(model.name)
            model.fault, model.fault_code = "; ".join(report.faults), report.code
            text = f"{report.ref} could not be prepared"
            return self._settle(model, ok=False, message=text, faults=report.faults, code=report.code)
        if not report.ready:
            return []  # the controller has to learn of the content first
        self.changed_models.add(model.name)
        content = self._proposed.get(report.ref)
        if content is not None:
            model.contents[version] = content
        replies = self._settle(model, ok=True, message=f"{report.ref} is current")
        replies += self._current_leaves(model, f"another version is current now: {report.ref}", ReplyCode.SUPERSEDED)
        if model.current is None or model.rolling_back:
            if model.history and model.history[-1] == version:
                model.history.pop()
        else:
            self._remember(model)
        model.current, model.fault, model.fault_code = version, "", ""
        return replies

    def _current_reported(self, model: ModelRecord, report: wire.PrepareReport) -> Replies:
        """Takes in that the current version can be served again, or that no device can prepare it any more."""
        if model.container or not report.ready:
            return []  # a container's version: whether it is served follows from the replicas that are registered
        unserved, code = ("; ".join(report.faults) or "no reason was given", report.code) if not report.ok else ("", "")
        if (model.unserved, model.unserved_code) != (unserved, code):
            model.unserved, model.unserved_code = unserved, code
            self.changed_models.add(model.name)
        if report.ok:
            return self._answer(report.ref, ok=True, message=f"{report.ref} is current, and served again")
        text = f"{report.ref} could not be prepared"
        return self._answer(report.ref, ok=False, message=text, faults=report.faults, code=report.code)

    def _current_leaves(self, model: ModelRecord, message: str, code: ReplyCode) -> Replies:
        """The current version is about to be replaced or removed.

        Returns the replies, with `message`, to calls that wait for it.
        """
        model.unserved = model.unserved_code = ""
        if model.current is None:
            return []
        return self._answer(wire.ref_of(model.name, model.current), ok=False, message=message, code=code)

    # -- containers ---------------------------------------------------------------------------------------------------

    def claim(self, call: int, name: str, content: str, version: str | None) -> wire.CallReply:
        """Assigns this code a version number: `version` if given, else the number the code has already, else the next
        free one.
        """
        model = self.models.get(name)
        numbers = {*model.versions, *model.contents} if model is not None else set()
        chosen = version
        if chosen is None and model is not None:
            chosen = number_of(content, model.contents, model.current)
        if chosen is None:
            chosen = next_free(numbers)
        why = self._cannot_be(model, wire.ref_of(name, chosen), content)
        if why is not None:
            return msgspec.structs.replace(why, call=call)
        if model is None:
            model = self.models[name] = ModelRecord(name, container=True, deployed=False)
        if chosen not in model.contents:
            model.contents = {**model.contents, chosen: content}
            self.changed_models.add(name)
        message = f"this is version {chosen} of {name}"
        return wire.CallReply(call=call, ok=True, message=message, version=chosen)

    def offered(self, member: str, offer: wire.Offer) -> wire.CallReply | None:
        """Registers a container's version. It becomes the target if nobody serves the model, or if the version is new.

        Returns a reply that says why the container is refused, or None.
        """
        name, version = wire.split_ref(offer.ref)
        model = self.models.get(name)
        why = self._cannot_be(model, offer.ref, offer.code) or self._differs(member, offer)
        if why:
            return why
        if model is None:
            model = self.models[name] = ModelRecord(name, container=True)
        replicas = self._replicas.setdefault(offer.ref, {})
        if not replicas:
            model.builds = {**model.builds, version: model.builds.get(version, 0) + 1}
        known = version in model.versions
        replicas[member] = offer
        model.contents = {**model.contents, version: offer.code}
        build = f"{offer.code}.{model.builds[version]}"
        model.specs[version] = msgspec.structs.replace(offer.spec, build=build)
        model.versions = sorted({*model.versions, version}, key=int)
        unserved = model.current is None or not self._replicas.get(wire.ref_of(name, model.current))
        if not model.deployed or (model.current != version and model.target is None and (unserved or not known)):
            text = f"another deployment took over: {offer.ref}"
            self._settle(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.deployed, model.target, model.rolling_back = True, version, False
            model.fault = model.fault_code = ""
        self.changed_models.add(name)
        return None

    def withdrawn(self, member: str) -> None:
        """Removes a member that is gone, if it was a container."""
        for ref, replicas in list(self._replicas.items()):
            replicas.pop(member, None)
            if not replicas:
                del self._replicas[ref]

    def _cannot_be(self, model: ModelRecord | None, ref: str, content: str) -> wire.CallReply | None:
        """Why a container with this content cannot be this version; None if it can."""
        name, version = wire.split_ref(ref)
        if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
            text = f"a model's name matches {NAME.pattern}, its version {VERSION.pattern}; got {ref!r}"
            return _no(text, "name", code=ReplyCode.BAD_NAME)
        if model is None:
            return None
        if not model.container:
            text = f"model {name!r} is a package in the model repository: give the container another --model"
            return _no(text, "name", code=PackageCode.NAME_TAKEN)
        if model.contents.get(version, content) == content:
            return None
        text = why_exists(ref, next_free({*model.versions, *model.contents}))
        return _no(text, "version", code=PackageCode.VERSION_EXISTS)

    def _differs(self, member: str, offer: wire.Offer) -> wire.CallReply | None:
        """Why a container with the same content as others cannot be their replica (another spec); None if it can."""
        others = [other for key, other in self._replicas.get(offer.ref, {}).items() if key != member]
        if all(other.spec == offer.spec for other in others):
            return None
        text = (
            f"{len(others)} replicas of {offer.ref} are there with another --batch-max, --slo-ms or --cache: give this "
            "one what they have, or stop those first"
        )
        return _no(text, "version", code=ReplyCode.REPLICAS_DIFFER)

    def _versions(self, name: str, found: Found) -> list[str]:
        """The versions that can be deployed: those of packages, or those that at least one container serves."""
        model = self.models.get(name)
        if model is None or not model.container:
            return list(found.get(name, ()))
        return [version for version in model.versions if self._replicas.get(wire.ref_of(name, version))]

    def deployed(self) -> dict[str, ModelRecord]:
        """{name: model} of models that take requests now, or will once they are prepared."""
        return {name: model for name, model in self.models.items() if model.deployed}

    def entries(self, owner_of: Mapping[str, str]) -> tuple[wire.ModelEntry, ...]:
        """The models' part of the routing table. `owner_of`: {model: id of its controller}."""
        return tuple(
            wire.ModelEntry(
                name=name,
                current=model.current,
                target=model.target,
                versions=tuple(model.versions),
                owner=owner_of.get(name),
                spec=model.specs.get(model.current) if model.current is not None else None,
                fault=model.unserved or model.fault,
                container=model.container,
                contents=self._contents_of(model),
                tries=model.tries,
                unserved=bool(model.unserved),
                fault_code=model.unserved_code if model.unserved else model.fault_code,
            )
            for name, model in sorted(self.deployed().items())
        )

    def _contents_of(self, model: ModelRecord) -> dict[str, str]:
        """{version: digest} of what controllers may serve.

        Only versions read from files: a container is checked when it registers.
        """
        asked = () if model.container else (model.current, model.target)
        found = {v: model.contents.get(v) or self._proposed.get(wire.ref_of(model.name, v)) for v in asked if v}
        return {version: content for version, content in found.items() if content}

    def known(self) -> tuple[wire.KnownModel, ...]:
        """Every model that exists or existed, with the content of every version that was served."""
        return tuple(
            wire.KnownModel(
                name=name,
                current=model.current,
                previous=model.history[-1] if model.history else None,
                contents=dict(model.contents),
                container=model.container,
            )
            for name, model in sorted(self.models.items())
        )

    def open_calls(self) -> list[CallKey]:
        """Returns the calls that have not been answered yet."""
        return [key for keys in self._waiting.values() for key in keys]

    def awaits(self, peer: str) -> bool:
        """Whether a call of `peer` has not been answered yet."""
        return any(key[0] == peer for key in self.open_calls())

    def drop_calls(self, peer: str) -> None:
        """`peer` is gone: its deployments continue, and their replies go to nobody."""
        for ref, keys in list(self._waiting.items()):
            self._waiting[ref] = [key for key in keys if key[0] != peer]

    def _aim(self, key: CallKey, model: ModelRecord, version: str, *, rolling_back: bool = False) -> Replies:
        ref = wire.ref_of(model.name, version)
        self.changed_models.add(model.name)
        if model.deployed and model.current == version:
            text = f"{ref} stays current: it was deployed again"
            replies = self._settle(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.fault = model.fault_code = ""
            if not model.unserved:
                return [*replies, (key, wire.CallReply(call=key[1], ok=True, message=f"{ref} is current already"))]
        else:
            replies = []
            if model.target != version:
                text = f"another deployment took over: {ref}"
                replies = self._settle(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.deployed, model.target, model.rolling_back = True, version, rolling_back
            model.fault = model.fault_code = ""
        model.tries += 1
        self._waiting.setdefault(ref, []).append(key)
        return replies

    def _settle(
        self, model: ModelRecord, *, ok: bool, message: str, faults: tuple[str, ...] = (), code: str = ""
    ) -> Replies:
        """Clears the model's target. Returns the replies to the calls that waited for it."""
        if model.target is None:
            return []
        ref = wire.ref_of(model.name, model.target)
        self._proposed.pop(ref, None)
        model.target = None
        return self._answer(ref, ok=ok, message=message, faults=faults, code=code)

    def _answer(self, ref: str, *, ok: bool, message: str, faults: tuple[str, ...] = (), code: str = "") -> Replies:
        """Returns one reply to each call that waits for this version; none waits afterwards."""
        keys = self._waiting.pop(ref, [])
        reply = wire.CallReply(call=0, ok=ok, message=message, faults=faults, code=code)
        return [(key, msgspec.structs.replace(reply, call=key[1])) for key in keys]

    def _remember(self, model: ModelRecord) -> None:
        assert model.current is not None
        model.history = [*model.history, model.current][-HISTORY_MAX:]

    # -- applications -------------------------------------------------------------------------------------------------

    def put_app(self, call: int, definition: dict[str, Any], *, create: bool) -> wire.CallReply:
        """The application is stored as defined. Checks names and models; frontends have checked the policy already."""
        name = definition.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return _no(
                f"an application's name matches {NAME.pattern}; got {name!r}", "app.name", call, ReplyCode.BAD_APP
            )
        app = self.apps.get(name)
        if create and app is not None:
            text = f"application {name!r} exists already; change it with update_app"
            return _no(text, "app.name", call, ReplyCode.APP_EXISTS)
        if not create and app is None:
            text = f"there is no application {name!r}; there are: {listed(self.apps)}"
            return _no(text, "app.name", call, ReplyCode.UNKNOWN_APP)
        models = definition.get("models")
        if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
            return _no(f"models is a list of names; got {models!r}", "app.models", call, ReplyCode.BAD_APP)
        unknown = [model for model in definition.get("models", ()) if model not in self.deployed()]
        if unknown:
            text = f"unknown models: {', '.join(map(str, unknown))}; deployed are: {listed(self.deployed())}"
            return _no(text, "app.models", call, ReplyCode.BAD_APP)
        revision = self.revisions = self.revisions + 1
        self.apps[name] = AppRecord(name, definition, revision, app.created if app is not None else revision)
        self.changed_apps.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is in effect", revision=revision)

    def drop_app(self, call: int, name: str) -> wire.CallReply:
        """The application is deleted."""
        app = self.apps.pop(name, None)
        if app is None:
            text = f"there is no application {name!r}; there are: {listed(self.apps)}"
            return _no(text, "app", call, ReplyCode.UNKNOWN_APP)
        self.changed_apps.add(name)
        return wire.CallReply(call=call, ok=True, message=f"application {name} is deleted")

    def app_entries(self) -> tuple[wire.AppEntry, ...]:
        """The applications' part of the routing table."""
        return tuple(
            wire.AppEntry(name=app.name, definition=app.definition, revision=app.revision, created=app.created)
            for _, app in sorted(self.apps.items())
        )

    def check(self) -> None:
        """Asserts every invariant."""
        for name, model in self.models.items():
            assert model.name == name
            assert model.deployed or (model.current is None and model.target is None)
            assert model.target is None or model.target != model.current
            assert len(model.history) <= HISTORY_MAX
            assert not model.unserved or model.current is not None
        for ref, keys in self._waiting.items():
            name, version = wire.split_ref(ref)
            model = self.models[name]
            assert not keys or model.target == version or (model.current == version and model.unserved), (ref, keys)
        for ref in self._proposed:
            name, version = wire.split_ref(ref)
            assert self.models[name].target == version
            assert version not in self.models[name].contents, ref


def _no(message: str, field_name: str, call: int = 0, code: str = "") -> wire.CallReply:
    return wire.CallReply(call=call, ok=False, message=message, field=field_name, code=code)
