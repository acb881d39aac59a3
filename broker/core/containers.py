"""Versions that containers serve: the numbers that their code claims, and the replicas that are registered."""

from dataclasses import dataclass, field

import msgspec

from broker.core.records import ModelRecord
from broker.core.refusals import cannot_be, refusal
from mesh import wire
from mesh.codes import ReplyCode
from mesh.versions import next_free, number_of


@dataclass(slots=True)
class Containers:
    """All containers. What they bring is in the catalogue's records; the catalogue decides what becomes current."""

    models: dict[str, ModelRecord]  # the catalogue's
    changed: set[str]  # the catalogue's: names of models whose records have to be saved
    _replicas: dict[str, dict[str, wire.Offer]] = field(default_factory=dict)  # {ref: {member: its offer}}

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
        why = cannot_be(model, wire.ref_of(name, chosen), content)
        if why is not None:
            return msgspec.structs.replace(why, call=call)
        if model is None:
            model = self.models[name] = ModelRecord(name, container=True, deployed=False)
        if chosen not in model.contents:
            model.contents = {**model.contents, chosen: content}
            self.changed.add(name)
        message = f"this is version {chosen} of {name}"
        return wire.CallReply(call=call, ok=True, message=message, version=chosen)

    def refused(self, member: str, offer: wire.Offer) -> wire.CallReply | None:
        """Why the container cannot serve what it offers; None if it can."""
        name, _ = wire.split_ref(offer.ref)
        return cannot_be(self.models.get(name), offer.ref, offer.code) or self._differs(member, offer)

    def add(self, member: str, offer: wire.Offer) -> bool:
        """The container is a replica of its version. Returns whether the version was known before."""
        name, version = wire.split_ref(offer.ref)
        model = self.models.get(name)
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
        self.changed.add(name)
        return known

    def withdraw(self, member: str) -> None:
        """Removes a member that is gone, if it was a container."""
        for ref, replicas in list(self._replicas.items()):
            replicas.pop(member, None)
            if not replicas:
                del self._replicas[ref]

    def serve(self, name: str, version: str) -> bool:
        """Whether at least one container serves the version."""
        return bool(self._replicas.get(wire.ref_of(name, version)))

    def _differs(self, member: str, offer: wire.Offer) -> wire.CallReply | None:
        """Why a container with the same content as others cannot be their replica (another spec); None if it can."""
        others = [other for key, other in self._replicas.get(offer.ref, {}).items() if key != member]
        if all(other.spec == offer.spec for other in others):
            return None
        text = (
            f"{len(others)} replicas of {offer.ref} are there with another --batch-max, --slo-ms or --cache: give this "
            "one what they have, or stop those first"
        )
        return refusal(text, "version", code=ReplyCode.REPLICAS_DIFFER)
