"""A broker, its controllers and their workers, message by message: who has which content of one version, and serves it.

Links keep order, until one of their ends dies: then what is on them is lost. Which link delivers next is for the test.
"""

from collections import deque
from typing import Any

import msgspec

from broker.core.catalogue import Catalogue
from broker.core.records import ModelRecord
from controller.core.orders import Order, ToBroker, ToFrontend
from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from controller.core.versions.preparation import terms_of
from mesh import wire
from mesh.codes import PackageCode
from tests.controller.core.controller_builders import TEN_MS, hello, prepared

NAME, REF = "m", "m:1"
KEY = ("operator", 1)
FOUND = {NAME: ["1"]}


class Worker:
    """What it has prepared, and what its files are."""

    def __init__(self, name: str, disk: str) -> None:
        self.name, self.disk = name, disk
        self.held = ""  # content in its memory
        self.reading: deque[wire.Prepare] = deque()  # asked for, and not done

    def report(self) -> wire.Prepared:
        """Of what it has."""
        return msgspec.structs.replace(prepared(REF, TEN_MS), content=self.held)

    def read(self) -> wire.Prepared:
        """It does what it was asked first."""
        asked = self.reading.popleft()
        if asked.content and asked.content != self.disk:
            return wire.Prepared(ref=REF, ok=False, faults=("other files",), code=PackageCode.CONTENT_CHANGED)
        self.held = self.disk
        return self.report()


class Mesh:
    """One model, one version. `served`: contents that requests of clients could have been answered from, ever."""

    def __init__(self, disks: dict[str, str], record: ModelRecord | None = None) -> None:
        self.workers = {name: Worker(name, disk) for name, disk in disks.items()}
        self.catalogue = Catalogue({NAME: record} if record is not None else {})
        self.catalogue.scan(FOUND)
        self.table = self._entry()  # as clients' frontends have it
        self.links: dict[str, deque[Any]] = {}
        self.served: set[str] = set()
        self.replies: list[wire.CallReply] = []
        self.restart_controller()

    # -- what may happen ----------------------------------------------------------------------------------------------

    def steps(self) -> list[str]:
        """All that could happen next, of itself."""
        reading = [f"{name} reads" for name, worker in self.workers.items() if worker.reading]
        return [*(name for name, mail in self.links.items() if mail), *reading]

    def step(self, what: str) -> None:
        """It happens."""
        if what.endswith(" reads"):
            worker = self.workers[what.split()[0]]
            self.links[f"{worker.name} to controller"].append(worker.read())
        else:
            self._deliver(what, self.links[what].popleft())
        self._look()

    def restart_controller(self) -> None:
        """Its successor knows nothing; workers and broker find it."""
        state = ShardState()
        self.scheduler = Scheduler(make_policy("atc", state), state, Parameters())
        for name, worker in self.workers.items():
            words = hello(name, *([worker.report()] if worker.held else []))
            self.links[f"{name} to controller"] = deque([words])
            self.links[f"controller to {name}"] = deque()
        self._relink_broker()
        self._look()

    def restart_broker(self) -> None:
        """It knows what it had written."""
        kept = {
            name: msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=ModelRecord)
            for name, record in self.catalogue.models.items()
        }
        self.catalogue = Catalogue(kept)
        self.catalogue.scan(FOUND)
        self._relink_broker()
        self._look()

    def restart_worker(self, name: str) -> None:
        """Its memory is gone; its files are as they are now."""
        worker = self.workers[name] = Worker(name, self.workers[name].disk)
        self._order(self.scheduler.worker_lost(name, now=0.0))
        self.links[f"{name} to controller"] = deque([hello(name)])
        self.links[f"controller to {name}"] = deque()
        worker.reading.clear()
        self._turn()
        self._look()

    def deploy(self) -> None:
        """The operator asks for the version."""
        self.replies += [reply for _, reply in self.catalogue.deploy(KEY, NAME, "1", FOUND)]
        self._publish()
        self._look()

    def settle(self) -> None:
        """Whatever happens of itself has happened."""
        for _ in range(1000):
            steps = self.steps()
            if not steps:
                return
            self.step(steps[0])
        raise AssertionError("they talk without end")

    @property
    def serving(self) -> set[str]:
        """Contents that a client's request could be answered from now."""
        model = self.scheduler.state.models.get(REF)
        bound = self.table is not None and self.table.current == "1"
        return {self.workers[name].held for name in model.ready} if model is not None and bound else set()

    # -- how ----------------------------------------------------------------------------------------------------------

    def _deliver(self, link: str, message: Any) -> None:
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        if link == "broker to frontend":
            self.table = message
        elif link == "broker to controller":
            versions = [] if message is None else [v for v in (message.current, message.target) if v is not None]
            terms = {wire.ref_of(NAME, version): terms_of(message, version) for version in versions}
            self._order(self.scheduler.want(list(terms), (), terms, now=0.0))
        elif link == "controller to broker":
            self.replies += [reply for _, reply in self.catalogue.reported(message)]
            self.catalogue.check()
            if self.catalogue.changed_models:
                self._publish()
        elif link.endswith(" to controller"):
            worker = link.split()[0]
            if isinstance(message, wire.WorkerHello):
                self._order(self.scheduler.worker_joined(message, now=0.0))
            else:
                self._order(self.scheduler.prepared(worker, message, now=0.0))
        else:
            self._obey(self.workers[link.split()[-1]], message)
        self._turn()

    def _obey(self, worker: Worker, message: Any) -> None:
        if isinstance(message, wire.Forget):
            worker.held = ""
            worker.reading.clear()
        elif isinstance(message, wire.Prepare):
            if worker.held and message.content in ("", worker.held):
                self.links[f"{worker.name} to controller"].append(worker.report())
            else:
                worker.held = ""
                worker.reading.append(message)

    def _turn(self) -> None:
        self._order(self.scheduler.wake(now=0.0))
        self.scheduler.check()

    def _order(self, orders: list[Order]) -> None:
        self.scheduler.check()
        for order in orders:
            if isinstance(order, ToBroker):
                self.links["controller to broker"].append(order.message)
            elif not isinstance(order, ToFrontend):
                self.links[f"controller to {order.worker}"].append(order.message)

    def _relink_broker(self) -> None:
        self.links["controller to broker"] = deque()
        self.links["broker to controller"] = deque()
        self.links["broker to frontend"] = deque()
        self._publish()

    def _publish(self) -> None:
        self.catalogue.changed_models.clear()
        for link in ("broker to controller", "broker to frontend"):
            self.links[link].append(self._entry())

    def _entry(self) -> wire.ModelEntry | None:
        return next(iter(self.catalogue.entries({})), None)

    def _look(self) -> None:
        self.served |= self.serving
        assert len(self.served) <= 1, f"one version was served from {self.served}"
