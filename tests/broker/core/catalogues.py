"""Short forms of events and replies of a catalogue."""

from dataclasses import dataclass
from typing import Any

import msgspec

from broker.core.catalogue import Catalogue
from broker.core.records import ModelRecord
from mesh import wire
from mesh.codes import PackageCode
from tests.messages import names

SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
    batch_max=8,
    slo_ms=50.0,
)
ANN, BEN = ("operator-ann", 1), ("operator-ben", 2)
FOUND = {"m": ["1", "2", "3"]}


def prepared(ref: str) -> wire.PrepareReport:
    return wire.PrepareReport(ref=ref, ok=True, spec=SPEC)


def broken(ref: str, *faults: str) -> wire.PrepareReport:
    return wire.PrepareReport(ref=ref, ok=False, faults=faults, code=PackageCode.BAD_PACKAGE)


@dataclass(frozen=True)
class Told:
    """Equal to every reply of this outcome whose message names these."""

    call: int
    code: str
    named: tuple[str, ...]
    faults: tuple[str, ...]
    field: str

    def __eq__(self, reply: object) -> bool:
        assert isinstance(reply, wire.CallReply)
        found = (reply.call, reply.ok, reply.code, reply.faults, reply.field)
        return found == (self.call, not self.code, self.code, self.faults, self.field) and names(
            reply.message, *self.named
        )


def told(
    key: tuple[str, int], code: str, *named: str, faults: tuple[str, ...] = (), field: str = ""
) -> list[tuple[tuple[str, int], Told]]:
    """What one caller is told: `code` (empty: it is ok), and what the message names. A refusal has no call yet."""
    return [(key, Told(0 if field else key[1], code, named, faults, field))]


def state(catalogue: Any, name: str = "m") -> tuple[str | None, str | None, list[str]]:
    model = catalogue.models[name]
    return model.current, model.target, model.history


def offer(ref: str = "f:1", code: str = "abc") -> wire.Offer:
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    return wire.Offer(
        ref=ref, spec=wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=8, slo_ms=9), code=code
    )


def served(catalogue: Catalogue, member: str = "c1", ref: str = "f:1", code: str = "abc") -> wire.ModelSpec:
    """Registers a container and reports its version prepared. Returns the spec that clients see."""
    assert catalogue.offered(member, offer(ref, code)) is None
    catalogue.reported(wire.PrepareReport(ref=ref, ok=True, spec=offer().spec))
    catalogue.check()
    name, version = wire.split_ref(ref)
    assert catalogue.models[name].current == version
    return catalogue.models[name].specs[version]


def reopened(model: ModelRecord) -> ModelRecord:
    """The record as a restarted broker reads it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(model), type=ModelRecord)
