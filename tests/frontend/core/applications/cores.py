"""The applications' core with one application over models a, b and c, and the events that a test tells it."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from frontend.core import protocol
from frontend.core.applications.core import Applications
from frontend.core.applications.decisions import DecisionTable
from frontend.core.applications.messages import (
    Ask,
    ClientAsked,
    Event,
    ModelAnswered,
    Order,
    SendAnswer,
    StateRead,
    StoreChanged,
)
from frontend.core.applications.registry import ApplicationLimits
from mesh import wire
from selection.base import State

MODELS = ["a", "b", "c"]
SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 2)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
    batch_max=8,
    slo_ms=100.0,
)
ODD = wire.ModelSpec(inputs=SPEC.inputs, outputs=SPEC.inputs, batch_max=8, slo_ms=100.0)
X = np.ones((1, 2), np.float32).tobytes()
ASKER = 77  # who asks, as the controller is told
DEFAULT = [{"name": "y", "dtype": "float32", "shape": [1, 4], "data": np.full(4, 0.25, np.float32).tobytes()}]
DECISION_S = 60.0


def scores(label: int) -> bytes:
    """One row that says this class."""
    return bytes((np.eye(4, dtype=np.float32)[label] * 9).tobytes())


def definition(policy: str = "majority", **fields: Any) -> dict[str, Any]:
    """Of the application "app"."""
    return {"name": "app", "models": MODELS, "policy": policy, **fields}


def entry(definition: Mapping[str, Any], revision: int = 1, created: int = 1) -> wire.AppEntry:
    return wire.AppEntry(name=definition["name"], definition=dict(definition), revision=revision, created=created)


def model(name: str, spec: wire.ModelSpec | None = SPEC) -> wire.ModelEntry:
    return wire.ModelEntry(
        name=name, current="1" if spec else None, target=None, versions=("1",), owner=None, spec=spec
    )


def table(
    *apps: wire.AppEntry, frontends: int = 1, odd: tuple[str, ...] = (), unprepared: tuple[str, ...] = ()
) -> wire.Table:
    """`odd` models give something else than the others; `unprepared` ones cannot be asked."""
    specs = {name: None if name in unprepared else ODD if name in odd else SPEC for name in MODELS}
    members = tuple(wire.Member(id=f"frontend-{i}", role="frontend", host="here") for i in range(frontends))
    models = tuple(model(name, spec) for name, spec in specs.items())
    return wire.Table(epoch=1, members=members, models=models, apps=apps)


def limits(allow: tuple[str, ...] = ()) -> ApplicationLimits:
    return ApplicationLimits(slo_ms_max=60_000.0, rows_max=64, request_bytes_max=1 << 20, selection_allow=allow)


class Core:
    """Checks its invariants after each event. The store is up, and has nothing, unless a test says so."""

    def __init__(
        self, policy: str = "majority", *, frontends: int = 1, allow: tuple[str, ...] = (), decisions_max: int = 10,
        seed: int = 1, **fields: Any,
    ) -> None:  # fmt: skip
        self.decisions = DecisionTable("01234567", decisions_max, DECISION_S, b"secret")
        self.core = Applications(limits(allow), self.decisions, random.Random(seed))
        self.entry = entry(definition(policy, **fields))
        assert self.handle(table(self.entry, frontends=frontends)) == []

    def handle(self, event: Event, now: float = 0.0) -> list[Order]:
        orders = self.core.handle(event, now)
        self.core.check()
        return orders

    def wake(self, now: float) -> list[Order]:
        orders = self.core.wake(now)
        self.core.check()
        return orders

    def ask(self, request: Any, now: float = 0.0) -> list[Order]:
        """A client asks for this."""
        return self.handle(ClientAsked("client", request, (), now, ASKER), now)

    def infer(self, request_id: int = 1, now: float = 0.0, **fields: Any) -> list[Order]:
        """A client asks the application about one row."""
        tensor = protocol.RequestTensor("x", "float32", [1, 2], memoryview(X))
        return self.ask(protocol.InferRequest(id=request_id, inputs=[tensor], app="app", **fields), now)

    def read(self, state: State | None = None, context: str = "", now: float = 0.0) -> list[Order]:
        """The store was read to serve this context."""
        return self.handle(StateRead(("app", context), None, state), now)

    def store_is(self, down: str = "", *, full: bool = False) -> None:
        assert self.handle(StoreChanged(down, full)) == []

    def say(self, orders: list[Order], now: float = 0.0, **labels: int) -> list[Order]:
        """The models answer what these orders ask them; returns what follows from all of it."""
        asks = {order.model: order for order in orders if isinstance(order, Ask)}
        told = [self.handle(ModelAnswered(asks[name].number, [scores(label)]), now) for name, label in labels.items()]
        return [order for each in told for order in each]

    def decide(self, request_id: int = 1, context: str = "", now: float = 0.0, **labels: int) -> str:
        """The application answers with what these models say. Returns the decision's id."""
        asked = self.infer(request_id, now, context=context) + self.read(None, context, now)
        orders = self.say(asked, now, **labels)
        if not orders:
            orders = self.wake(now + 10.0)
        (answer,) = [order.answer for order in orders if isinstance(order, SendAnswer)]
        assert answer.decision_id is not None
        return answer.decision_id


def asks(orders: list[Order]) -> list[str]:
    """The models that these orders ask."""
    return [order.model for order in orders if isinstance(order, Ask)]
