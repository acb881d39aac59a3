"""A broker, controllers and workers, message by message: who has which version when controllers follow each other.

The broker's, controllers' and numbering cores are the real ones. Links keep order, until one of their ends dies; which
link delivers next, when deaths are noticed and when preparations end is for chance.
"""

import random
from collections import Counter, deque
from typing import Any

import msgspec

from broker.core.catalogue import Catalogue
from broker.core.routing import Routing
from controller.core.orders import Order, ToBroker, ToWorker
from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from controller.core.versions.shard import shard_of
from gpu_worker.core.obeyed import ObeyedOrders
from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import TEN_MS, hello, prepared

PAGES = 8


class Link:
    """What is on its way between two peers, in either direction."""

    def __init__(self, life: "PaperController | None" = None) -> None:
        self.life = life  # who listens; None: the broker
        self.up: deque[Any] = deque()  # to the one who listens
        self.down: deque[Any] = deque()
        self.open = True


class PaperController:
    """One life of a controller, at an address where its successor will be as well."""

    def __init__(self, name: str, address: str, policy: str, now: float) -> None:
        self.name, self.address, self.epoch = name, address, 0
        state = ShardState()
        self.scheduler = Scheduler(make_policy(policy, state), state, Parameters(), name=name, started_s=now)
        self.links: dict[str, Link] = {}  # {worker: the link that it called us on last}
        self.early: list[tuple[Link, wire.WorkerHello]] = []


class PaperWorker:
    """What it has prepared and loaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reports: dict[str, wire.Prepared] = {}
        self.reading: dict[str, None] = {}
        self.resident: dict[str, None] = {}
        self.orders = ObeyedOrders()
        self.link: Link | None = None
        self.called = ""  # the controller that the link was opened for, or that answered
        self.table: wire.Table | None = None
        self.epoch = 0

    def hello(self) -> wire.WorkerHello:
        """What it is and has."""
        reports = [self.orders.named(report) for report in self.reports.values()]
        free = PAGES - 2 * len(self.resident)
        return hello(self.name, *reports, pages=PAGES, free_pages=free, resident=self.resident)


class Succession:
    """The mesh. `prepared`: how often each worker has prepared each version."""

    def __init__(self, seed: int, *, controllers: int, workers: int, models: int, policy: str) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.replaces = True  # a controller replaces another one at its address; False: on another host
        self.policy = policy
        self.found = {f"m{i}": ["1"] for i in range(models)}
        self.catalogue = Catalogue()
        self.catalogue.scan(self.found)
        self.routing = Routing(0)
        self.controllers: dict[str, PaperController] = {}  # {address: who listens there}
        self.workers = {f"w{i}": PaperWorker(f"w{i}") for i in range(workers)}
        self.brokers: dict[str, Link] = {}  # {member: its link with the broker}
        self.dead: list[str] = []  # controllers whose death the broker has not noticed
        self.prepared: Counter[tuple[str, str]] = Counter()
        self.forgotten = 0
        self.served: set[str] = set()
        self.refused: list[str] = []
        self._lives = 0
        self._request = 0
        self._seats = [f"tcp://c{index}" for index in range(controllers)]
        for address in self._seats:
            self.start(address)
        for worker in self.workers.values():
            self._register(worker.name)

    # -- what may happen ----------------------------------------------------------------------------------------------

    def start(self, address: str) -> None:
        """A controller starts at this address."""
        self._lives += 1
        life = PaperController(f"controller-{self._lives}", address, self.policy, self.now)
        self.controllers[address] = life
        self._register(life.name)

    def kill_controller(self) -> None:
        """One dies. Those linked with it, and the broker, notice later; so does its successor start later."""
        if not self.controllers:
            return
        life = self.controllers.pop(self.rng.choice(list(self.controllers)))
        for link in life.links.values():
            link.open = False
        self.brokers.pop(life.name).open = False
        self.dead.append(life.name)

    def restart_broker(self) -> None:
        """It knows what it had written, and nobody."""
        for link in self.brokers.values():
            link.open = False
        self.routing = Routing(self.routing.epoch + 100)
        self.dead.clear()

    def hello_again(self) -> None:
        """A worker introduces itself once more, whoever asked it to."""
        worker = self.rng.choice(list(self.workers.values()))
        if worker.link is not None and worker.link.open:
            worker.link.up.append(worker.hello())

    def break_link(self) -> None:
        """A connection between a worker and its controller breaks."""
        worker = self.rng.choice(list(self.workers.values()))
        if worker.link is not None:
            worker.link.open = False

    def undeploy(self) -> None:
        """One model is undeployed, or deployed again."""
        name = self.rng.choice(list(self.found))
        if self.catalogue.models[name].deployed:
            self.catalogue.undeploy(("operator", 1), name)
        else:
            self.catalogue.deploy(("operator", 1), name, None, self.found)
        self._publish()

    def steps(self) -> list[tuple[str, str]]:
        """All that could happen next, of itself."""
        found = []
        for member, link in self.brokers.items():
            found += [("to broker", member)] * bool(link.up) + [("from broker", member)] * bool(link.down)
            found += [("finds the broker", member)] * (not link.open)
        for worker in self.workers.values():
            link_of = worker.link
            if link_of is not None:
                found += [("to controller", worker.name)] * bool(link_of.up and link_of.open)
                found += [("from controller", worker.name)] * bool(link_of.down)
            if worker.table is not None and (link_of is None or not link_of.open):
                found.append(("calls", worker.name))
            found += [("has read", worker.name)] * bool(worker.reading)
        found += [("is missed", name) for name in self.dead]
        found += [
            ("is silent", f"{life.name} {worker}")
            for life in self.controllers.values()
            for worker, link in life.links.items()
            if not link.open
        ]
        found += [("starts", address) for address in self._empty_seats()]
        return found

    def step(self, what: str, who: str) -> None:
        """It happens."""
        match what:
            case "to broker":
                self._at_broker(who, self.brokers[who].up.popleft())
            case "from broker":
                self._table(who, self.brokers[who].down.popleft())
            case "finds the broker":
                self._register(who)
            case "to controller" | "from controller" | "calls" | "has read":
                self._worker_step(what, self.workers[who])
            case "is missed":
                self.dead.remove(who)
                self.routing.leave(who)
                self._publish()
            case "is silent":
                name, worker = who.split()
                life = next(life for life in self.controllers.values() if life.name == name)
                del life.links[worker]
                self._order(life, life.scheduler.worker_lost(worker, now=self.now))
            case "starts":
                self.start(who)
        self._turn()

    def pass_time(self, for_s: float) -> None:
        """Nothing happens but what time brings."""
        until_s = self.now + for_s
        while self.now < until_s:
            wakes = [at for life in self.controllers.values() if (at := life.scheduler.wake_at()) is not None]
            self.now = min([until_s, *(max(at, self.now + 0.01) for at in wakes)])
            self._turn()

    def settle(self) -> None:
        """Whatever happens of itself has happened."""
        for _ in range(200):
            for _ in range(2000):
                steps = self.steps()
                if not steps:
                    break
                self.step(*self.rng.choice(steps))
            self.pass_time(0.5)
            if not self.steps():
                return
        raise AssertionError(f"they talk without end: {self.steps()}")

    def ask_everything(self) -> list[str]:
        """A request for every deployed version. Returns those that were not served."""
        asked = {wire.ref_of(name, "1") for name, model in self.catalogue.models.items() if model.deployed}
        self.served.clear()
        for ref in sorted(asked):
            for life in self.controllers.values():
                shard = shard_of(self._make_table(), life.name)
                if shard is not None and ref in shard.terms:
                    self._request += 1
                    inputs = (memoryview(bytes(4)),)
                    submit = wire.Submit(request=self._request, attempt=0, ref=ref, rows=1, budget_s=5.0, inline=inputs)
                    self._order(life, life.scheduler.submit(submit, "f", age_s=0.0, now=self.now))
        self._turn()
        self.settle()
        return sorted(asked - self.served)

    # -- the broker ---------------------------------------------------------------------------------------------------

    def _register(self, member: str) -> None:
        link = self.brokers[member] = Link()
        link.up.append("register")

    def _at_broker(self, who: str, message: Any) -> None:
        if isinstance(message, wire.PrepareReport):
            self.catalogue.reported(message)
            if self.catalogue.changed_models:
                self._publish()
            return
        worker = self.workers.get(who)
        life = next((life for life in self.controllers.values() if life.name == who), None)
        if worker is None and life is None:
            return
        endpoints = {} if life is None else {"control": (life.address,)}
        role, epoch = ("gpu_worker", worker.epoch) if worker is not None else ("controller", life.epoch if life else 0)
        member = wire.Member(id=who, role=role, host="h", endpoints=endpoints)
        for gone in self.routing.replaced_by(member) if self.replaces else ():
            self.dead = [name for name in self.dead if name != gone]
            self.routing.leave(gone)
        self.routing.register(member, epoch)
        self.routing.check()
        self._publish()

    def _publish(self) -> None:
        self.catalogue.changed_models.clear()
        self.routing.next_epoch()
        table = self._make_table()
        for member in self.routing.members:
            link = self.brokers.get(member)
            if link is not None and link.open:
                link.down.append(table)

    def _make_table(self) -> wire.Table:
        routing = self.routing
        models = self.catalogue.entries(routing.owners(self.catalogue.deployed()))
        return wire.Table(
            epoch=routing.epoch, members=tuple(routing.members.values()), models=models, shards=dict(routing.shards),
            workers=dict(routing.workers),
        )  # fmt: skip

    def _table(self, who: str, table: wire.Table) -> None:
        worker = self.workers.get(who)
        if worker is not None:
            worker.table = table
            owner = table.workers.get(who)
            if owner is not None and not (worker.link is not None and worker.called == owner):
                self._call(worker)
            return
        life = next((life for life in self.controllers.values() if life.name == who), None)
        shard = shard_of(table, who)
        if life is None or shard is None:
            return
        if shard.epoch != life.epoch:
            life.epoch = shard.epoch
            for link in life.links.values():
                link.down.append((life.epoch, wire.Welcome(controller=who)))
        self._order(life, life.scheduler.want(list(shard.terms), shard.contained, shard.terms, now=self.now))
        early, life.early = life.early, []
        for link, words in early:
            if link.open:
                self._hello(life, link, words)

    # -- controllers --------------------------------------------------------------------------------------------------

    def _hello(self, life: PaperController, link: Link, words: wire.WorkerHello) -> None:
        if not life.epoch:
            life.early.append((link, words))
            return
        life.links[words.member] = link
        link.down.append((life.epoch, wire.Welcome(controller=life.name)))
        self._order(life, life.scheduler.worker_joined(words, now=self.now))

    def _turn(self) -> None:
        for life in self.controllers.values():
            self._order(life, life.scheduler.wake(now=self.now))

    def _order(self, life: PaperController, orders: list[Order]) -> None:
        life.scheduler.check()
        for order in orders:
            if isinstance(order, ToWorker):
                link = life.links.get(order.worker)
                if link is not None and link.open:
                    link.down.append((life.epoch, order.message))
            elif isinstance(order, ToBroker):
                self.brokers[life.name].up.append(order.message)
            elif isinstance(order.message, wire.Refused):
                self.refused.append(order.message.code)

    def _empty_seats(self) -> list[str]:
        return sorted(set(self._seats) - self.controllers.keys())

    # -- workers ------------------------------------------------------------------------------------------------------

    def _call(self, worker: PaperWorker) -> None:
        table = worker.table
        assert table is not None
        owner = next((member for member in table.members if member.id == table.workers.get(worker.name)), None)
        if worker.link is not None:
            worker.link.open = False
            worker.link.down.clear()
        worker.link = None
        if owner is None:
            return
        life = self.controllers.get(owner.endpoints["control"][0])
        if life is None:
            return
        worker.link, worker.called = Link(life), owner.id
        worker.link.up.append(worker.hello())

    def _worker_step(self, what: str, worker: PaperWorker) -> None:
        link = worker.link
        if what == "calls":
            self._call(worker)
        elif what == "has read":
            ref = next(iter(worker.reading))
            del worker.reading[ref]
            self.prepared[worker.name, ref] += 1
            worker.reports[ref] = prepared(ref, TEN_MS)
            self._say(worker, worker.orders.named(worker.reports[ref]))
        elif what == "to controller":
            assert link is not None
            self._at_controller(worker, link, link.up.popleft())
        else:
            assert link is not None
            self._obey(worker, *link.down.popleft())

    def _at_controller(self, worker: PaperWorker, link: Link, message: Any) -> None:
        life = link.life
        if life is None or self.controllers.get(life.address) is not life:
            return
        if isinstance(message, wire.WorkerHello):
            self._hello(life, link, message)
        elif life.links.get(worker.name) is not link:
            link.down.append((life.epoch, wire.Introduce()))
        elif isinstance(message, wire.Prepared):
            self._order(life, life.scheduler.prepared(worker.name, message, now=self.now))
        else:
            self._order(life, life.scheduler.result(worker.name, message, now=self.now))

    def _obey(self, worker: PaperWorker, epoch: int, message: Any) -> None:
        match message:
            case wire.Welcome():
                if epoch > worker.epoch:
                    worker.epoch = epoch
                    self.brokers[worker.name].up.append("register")
                worker.called = message.controller
            case wire.Introduce():
                self._say(worker, worker.hello())
            case wire.Prepare(ref=ref):
                worker.orders.obey(message)
                if ref in worker.reports:
                    self._say(worker, worker.orders.named(worker.reports[ref]))
                else:
                    worker.reading[ref] = None
            case wire.Forget(ref=ref):
                worker.orders.obey(message)
                self.forgotten += ref in worker.reports
                for group in (worker.reports, worker.reading, worker.resident):
                    group.pop(ref, None)  # type: ignore[attr-defined]
            case wire.Load() | wire.Unload() | wire.Infer():
                self._act(worker, epoch, message)

    def _act(self, worker: PaperWorker, epoch: int, action: wire.Load | wire.Unload | wire.Infer) -> None:
        kind, ref, code = type(action).__name__.lower(), action.ref, ActionCode.OK
        if epoch < worker.epoch:
            code = ActionCode.STALE_EPOCH
        elif ref not in worker.reports:
            code = ActionCode.UNKNOWN_MODEL
        elif isinstance(action, wire.Load):
            room = len(worker.resident) < PAGES // 2
            code = ActionCode.ALREADY_LOADED if ref in worker.resident else code if room else ActionCode.NO_PAGES
            worker.resident |= {ref: None} if code == ActionCode.OK else {}
        elif ref not in worker.resident:
            code = ActionCode.WEIGHTS_MISSING
        elif isinstance(action, wire.Unload):
            del worker.resident[ref]
        elif action.parts:
            self.served.add(ref)
        done = code == ActionCode.OK
        self._say(
            worker,
            wire.ActionResult(
                action=action.action, kind=kind, code=code, received_s=self.now,
                free_pages=PAGES - 2 * len(worker.resident), begin_s=self.now if done else None,
                end_s=self.now if done else None, duration_s=0.01 if done else None,
            ),
        )  # fmt: skip

    def _say(self, worker: PaperWorker, message: Any) -> None:
        if worker.link is not None and worker.link.open:
            worker.link.up.append(msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message)))
