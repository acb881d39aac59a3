"""The models and applications of the mesh, and the current version of each model. Pure; `store.py` writes it to disk.

A version goes through: known (in the repository) -> target (being prepared) -> current -> history. The old version
stays current until the new one is prepared, so a deployment never interrupts service, and a failed one changes nothing.

A version number stands for one content. The catalogue records the content that is first served under a number, and
nothing else is ever served under it: a controller serves a version read from files only if its digest is the one in the
routing table, so it serves no version whose content the catalogue has not recorded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.core.applications import ApplicationRecords
from broker.core.calls import CallKey, Replies, WaitingCalls
from broker.core.containers import Containers
from broker.core.progress import why_waits
from broker.core.records import ModelRecord
from broker.core.refusals import KnownVersions, cannot_deploy, cannot_roll_back, refusal
from mesh import wire
from mesh.codes import PackageCode, ReplyCode
from mesh.names import listed
from mesh.versions import why_changed

HISTORY_MAX = 16  # versions that a rollback can return to


@dataclass(slots=True)
class Catalogue:
    """All models and applications. `changed_models` names the records of models that the store has to write."""

    models: dict[str, ModelRecord] = field(default_factory=dict)
    apps: ApplicationRecords = field(default_factory=ApplicationRecords)
    changed_models: set[str] = field(default_factory=set)
    repository: str = "the model repository"  # where packages are looked for; for error messages
    _waiting: WaitingCalls = field(default_factory=WaitingCalls)
    _containers: Containers = field(init=False)
    _proposed: dict[str, str] = field(
        default_factory=dict
    )  # {ref being prepared: digest, recorded once the version is current}

    def __post_init__(self) -> None:
        self._containers = Containers(self.models, self.changed_models)

    # -- models -------------------------------------------------------------------------------------------------------

    def scan(self, found: KnownVersions) -> None:
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
        self,
        key: CallKey,
        name: str,
        version: str | None,
        found: KnownVersions,
        faults: Mapping[str, str] | None = None,
    ) -> Replies:
        """The version (None: the newest) is being prepared. The reply comes once the version is current or its
        preparation failed.

        `faults`: {package, or ref of a version: why it is not a valid one, although its folder looks like one}.
        """
        versions = self._versions(name, found)
        why = cannot_deploy(self.models.get(name), name, version, versions, found, faults or {}, self.repository)
        if why is not None:
            return [(key, why)]
        model = self.models.setdefault(name, ModelRecord(name))
        if not model.container:
            model.versions = versions
        return self._aim(key, model, version or versions[-1])

    def rollback(self, key: CallKey, name: str, version: str | None = None) -> Replies:
        """The previously current version is being prepared. The reply comes as for `deploy`.

        `version`: the previous version as the operator last saw it. If another one is previous by now, nothing changes.
        """
        model = self.models.get(name)
        if model is None or not model.deployed:
            return [(key, refusal(f"model {name[:64]!r} is not deployed", "name", code=ReplyCode.NOT_DEPLOYED))]
        if version is not None and version == model.current and not (model.target or model.unserved):
            text = f"{wire.ref_of(name, version)} is current already"
            return [(key, wire.CallReply(call=key[1], ok=True, message=text))]
        replicas = bool(model.history) and self._containers.serve(name, model.history[-1])
        why = cannot_roll_back(model, version, replicas=replicas)
        if why is not None:
            return [(key, why)]
        return self._aim(key, model, model.history[-1], rolling_back=True)

    def undeploy(self, key: CallKey, name: str) -> Replies:
        """New requests for the model are refused from now on."""
        model = self.models.get(name)
        if model is None or not model.deployed:
            text = f"model {name[:64]!r} is not deployed; deployed are: {listed(self.deployed())}"
            return [(key, refusal(text, "name", code=ReplyCode.NOT_DEPLOYED))]
        users = self.apps.users_of(name)
        if users:
            text = f"model {name[:64]!r} is used by the applications {', '.join(users)}"
            return [(key, refusal(text, "name", code=ReplyCode.IN_USE))]
        replies = self._close_deployment(model, ok=False, message=f"{name} was undeployed", code=ReplyCode.UNDEPLOYED)
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
            return self._close_deployment(model, ok=False, message=text, faults=report.faults, code=report.code)
        if not report.ready:
            return []  # the controller has to learn of the content first
        self.changed_models.add(model.name)
        content = self._proposed.get(report.ref)
        if content is not None:
            model.contents[version] = content
        replies = self._close_deployment(model, ok=True, message=f"{report.ref} is current")
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
            return self._waiting.answer(report.ref, ok=True, message=f"{report.ref} is current, and served again")
        text = f"{report.ref} could not be prepared"
        return self._waiting.answer(report.ref, ok=False, message=text, faults=report.faults, code=report.code)

    def _current_leaves(self, model: ModelRecord, message: str, code: ReplyCode) -> Replies:
        """The current version is about to be replaced or removed.

        Returns the replies, with `message`, to calls that wait for it.
        """
        model.unserved = model.unserved_code = ""
        if model.current is None:
            return []
        return self._waiting.answer(wire.ref_of(model.name, model.current), ok=False, message=message, code=code)

    # -- containers ---------------------------------------------------------------------------------------------------

    def claim(self, call: int, name: str, content: str, version: str | None) -> wire.CallReply:
        """Assigns this code a version number: `version` if given, else the number the code has already, else the next
        free one.
        """
        return self._containers.claim(call, name, content, version)

    def offered(self, member: str, offer: wire.Offer) -> wire.CallReply | None:
        """Registers a container's version. It becomes the target if nobody serves the model, or if the version is new.

        Returns a reply that says why the container is refused, or None.
        """
        why = self._containers.refused(member, offer)
        if why:
            return why
        known = self._containers.add(member, offer)
        name, version = wire.split_ref(offer.ref)
        model = self.models[name]
        unserved = model.current is None or not self._containers.serve(name, model.current)
        if not model.deployed or (model.current != version and model.target is None and (unserved or not known)):
            text = f"another deployment took over: {offer.ref}"
            self._close_deployment(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.deployed, model.target, model.rolling_back = True, version, False
            model.fault = model.fault_code = ""
        return None

    def withdrawn(self, member: str) -> None:
        """Removes a member that is gone, if it was a container."""
        self._containers.withdraw(member)

    def _versions(self, name: str, found: KnownVersions) -> list[str]:
        """The versions that can be deployed: those of packages, or those that at least one container serves."""
        model = self.models.get(name)
        if model is None or not model.container:
            return list(found.get(name, ()))
        return [version for version in model.versions if self._containers.serve(name, version)]

    def deployed(self) -> dict[str, ModelRecord]:
        """{name: model} of models that take requests now, or will once they are prepared."""
        return {name: model for name, model in self.models.items() if model.deployed}

    def entries(self, owner_of: Mapping[str, str]) -> tuple[wire.ModelEntry, ...]:
        """The models' part of the routing table. `owner_of`: {model: id of its controller}."""
        return tuple(
            model.entry(owner_of.get(name), self._contents_of(model)) for name, model in sorted(self.deployed().items())
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
        return tuple(model.known() for _, model in sorted(self.models.items()))

    def open_calls(self) -> list[CallKey]:
        """Returns the calls that have not been answered yet."""
        return self._waiting.open()

    def awaited(self, peer: str, members: Iterable[wire.Member]) -> list[wire.CallWaits]:
        """What the calls of `peer` that have not been answered yet wait for. `members`: those of the mesh."""
        waits = []
        for call, ref in self._waiting.of(peer):
            container = self.models[wire.split_ref(ref)[0]].container
            reason, message = why_waits(ref, members, container=container)
            waits.append(wire.CallWaits(call=call, reason=reason, message=message))
        return waits

    def drop_calls(self, peer: str) -> None:
        """`peer` is gone: its deployments continue, and their replies go to nobody."""
        self._waiting.drop(peer)

    def _aim(self, key: CallKey, model: ModelRecord, version: str, *, rolling_back: bool = False) -> Replies:
        ref = wire.ref_of(model.name, version)
        self.changed_models.add(model.name)
        if model.deployed and model.current == version:
            text = f"{ref} stays current: it was deployed again"
            replies = self._close_deployment(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.fault = model.fault_code = ""
            if not model.unserved:
                return [*replies, (key, wire.CallReply(call=key[1], ok=True, message=f"{ref} is current already"))]
        else:
            replies = []
            if model.target != version:
                text = f"another deployment took over: {ref}"
                replies = self._close_deployment(model, ok=False, message=text, code=ReplyCode.SUPERSEDED)
            model.deployed, model.target, model.rolling_back = True, version, rolling_back
            model.fault = model.fault_code = ""
        model.tries += 1
        self._waiting.add(ref, key)
        return replies

    def _close_deployment(
        self, model: ModelRecord, *, ok: bool, message: str, faults: tuple[str, ...] = (), code: str = ""
    ) -> Replies:
        """Clears the model's target. Returns the replies to the calls that waited for it."""
        if model.target is None:
            return []
        ref = wire.ref_of(model.name, model.target)
        self._proposed.pop(ref, None)
        model.target = None
        return self._waiting.answer(ref, ok=ok, message=message, faults=faults, code=code)

    def _remember(self, model: ModelRecord) -> None:
        assert model.current is not None
        model.history = [*model.history, model.current][-HISTORY_MAX:]

    # -- applications -------------------------------------------------------------------------------------------------

    def put_app(self, call: int, definition: dict[str, Any], *, create: bool) -> wire.CallReply:
        """The application is stored as defined, if there is none of its name (`create`), or replaces that one."""
        return self.apps.put(call, definition, create=create, deployed=self.deployed())

    def drop_app(self, call: int, name: str) -> wire.CallReply:
        """The application is deleted."""
        return self.apps.drop(call, name)

    def check(self) -> None:
        """Asserts every invariant."""
        for name, model in self.models.items():
            assert model.name == name
            assert model.deployed or (model.current is None and model.target is None)
            assert model.target is None or model.target != model.current
            assert len(model.history) <= HISTORY_MAX
            assert not model.unserved or model.current is not None
        for ref, keys in self._waiting.calls.items():
            name, version = wire.split_ref(ref)
            model = self.models[name]
            assert not keys or model.target == version or (model.current == version and model.unserved), (ref, keys)
        for ref in self._proposed:
            name, version = wire.split_ref(ref)
            assert self.models[name].target == version
            assert version not in self.models[name].contents, ref
