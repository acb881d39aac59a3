"""A mesh on virtual time: the production scheduler, workers with the production lanes, and messages on their way. Pure.

The simulator and the tests of the controller run this one mesh. They differ in what they give to it: the network, how
long work takes, which versions there are, and who the clients are.

A message takes the network's time, an action the device's; everything else takes none. All that happens at one instant
is handed on before the controller decides, as in production, where a turn drains its sockets first.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from controller.core.orders import Order, ToFrontend, ToWorker
from controller.core.scheduler import Scheduler
from gearmesh.simulation.timeline import VirtualTime
from gearmesh.simulation.workers import FromWorker, SimWorker
from mesh import wire
from mesh.codes import RequestOutcome

CONTROLLER = "controller"
CLIENTS = "clients"  # where outputs go


class Network(Protocol):
    """How long messages are on their way."""

    def delay_s(self, sender: str, receiver: str, message: object, now: float) -> float | None:
        """Seconds until a message that is sent now arrives; 0: at once. None: it is lost."""


class Clients(Protocol):
    """Who hears of requests."""

    def answered(self, action: wire.Infer) -> None:
        """The outputs of a batch have arrived."""

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """The controller's refusal of a request has arrived."""


class VirtualMesh:
    """One controller at a time, and some workers. Its driver calls `advance` and then `run_due`, again and again.

    `make_scheduler(now)` makes the scheduler of a controller that starts. `clock_error_s` draws by how much the
    controller is wrong about the clock of a worker that it hears; None: all clocks agree.
    """

    def __init__(
        self,
        make_scheduler: Callable[[float], Scheduler],
        network: Network,
        clients: Clients,
        *,
        now: float = 0.0,
        page_bytes: int = 1,
        clock_error_s: Callable[[], float] | None = None,
        checked: bool = False,
    ) -> None:
        self.timeline = VirtualTime(now)
        self.network = network
        self.scheduler = make_scheduler(now)
        self.workers: dict[str, SimWorker] = {}  # {name: worker}, all that live or may live again
        self.epoch = 1  # of the controller
        self.down = False  # the controller is gone, and no other one has taken over
        self.wakes = 0  # of the controller by itself, since anything else happened to it
        self._make_scheduler = make_scheduler
        self._clients = clients
        self._page_bytes = page_bytes
        self._clock_error_s = clock_error_s
        self._checked = checked  # every core restates its invariants after every call
        self._wake_s: float | None = None  # the earliest wake of the controller that is planned
        self._dirty = False  # something happened to the controller since its last decision

    @property
    def now(self) -> float:
        """Seconds on the controller's clock."""
        return self.timeline.now

    # -- time ---------------------------------------------------------------------------------------------------------

    def run_due(self) -> None:
        """All that is due has happened, and the controller has decided."""
        pop_due = self.timeline.pop_due
        call = pop_due()
        while call is not None:
            call()
            if self._checked:
                self.check()
            call = pop_due()
        if self._dirty:
            self._decide()
            if self._checked:
                self.check()

    def happened(self) -> None:
        """The controller will decide in this turn."""
        self._dirty = True
        self.wakes = 0

    def send(self, sender: str, receiver: str, message: object, arrived: Callable[[], object]) -> None:
        """`arrived` happens when a message that is sent now arrives."""
        delay_s = self.network.delay_s(sender, receiver, message, self.timeline.now)
        if delay_s:
            self.timeline.at(self.timeline.now + delay_s, arrived)
        elif delay_s is not None:
            arrived()

    def check(self) -> None:
        """Every invariant of every core holds."""
        self.scheduler.check()
        for worker in self.workers.values():
            worker.check()

    # -- the controller -----------------------------------------------------------------------------------------------

    def submit(self, message: wire.Submit, frontend: str, age_s: float) -> None:
        """The controller hears of a request, which left the frontend `age_s` ago. One without inputs has none."""
        if self.down:
            return  # the frontend submits it again when there is a controller
        hollow = not message.inline and message.kept is None
        self._obey(self.scheduler.submit(message, frontend, age_s=age_s, now=self.now, hollow=hollow))
        self.happened()

    def cancel(self, frontend: str, request: int, outcome: RequestOutcome = RequestOutcome.CANCELLED) -> None:
        """The controller hears that the frontend does not wait for the request any more."""
        if not self.down:
            self.scheduler.cancel(frontend, request, outcome, now=self.now)
            self.happened()

    def want(self, refs: Sequence[str]) -> None:
        """The routing table names these versions, and no others."""
        self._obey(self.scheduler.want(list(refs), now=self.now))
        self.happened()

    def frontend_joined(self, frontend: str) -> None:
        """The controller meets a frontend."""
        self._obey(self.scheduler.frontend_joined(frontend))
        self.happened()

    def frontend_lost(self, frontend: str) -> None:
        """The controller has lost a frontend, and forgets its requests."""
        self.scheduler.frontend_lost(frontend, now=self.now)
        self.happened()

    def lose_controller(self) -> None:
        """The controller is gone, with all that it knows. The workers go on with what they were told."""
        self.down = True

    def take_over(self, refs: Sequence[str], frontends: Iterable[str]) -> None:
        """Another controller takes over and meets everybody."""
        self.epoch += 1
        self.down = False
        self._wake_s = None
        self.scheduler = self._make_scheduler(self.now)
        self.begin(refs, frontends)
        self.happened()

    def begin(self, refs: Sequence[str], frontends: Iterable[str]) -> None:
        """The controller learns which versions are wanted, and meets the frontends and the workers that live.

        It decides when something else happens.
        """
        self._obey(self.scheduler.want(list(refs), now=self.now))
        for frontend in frontends:
            self._obey(self.scheduler.frontend_joined(frontend))
        for worker in self.workers.values():
            if worker.linked:
                self.meet(worker)

    def _decide(self) -> None:
        self._dirty = False
        if self.down:
            return
        now = self.timeline.now
        self._obey(self.scheduler.wake(now=now))
        wake_s = self.scheduler.wake_at()
        if wake_s is not None and (self._wake_s is None or wake_s < self._wake_s or self._wake_s <= now):
            self._wake_s = wake_s
            self.timeline.at(wake_s, self._woken)

    def _woken(self) -> None:
        if self._wake_s is not None and self.timeline.now >= self._wake_s:
            self._wake_s = None
        self.wakes += 1
        self._dirty = True

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, ToWorker):
                self._post(order)
            elif isinstance(order, ToFrontend) and isinstance(order.message, wire.Refused):
                self._refuse(order.frontend, order.message)

    def _refuse(self, frontend: str, refused: wire.Refused) -> None:
        self.send(CONTROLLER, frontend, refused, lambda: self._clients.refused(frontend, refused))

    def _post(self, order: ToWorker) -> None:
        worker = self.workers.get(order.worker)
        if worker is None:
            return
        message, link, epoch = order.message, worker.link_in, self.epoch

        def arrived() -> None:
            if link == worker.link_in:
                worker.take(message, epoch)

        self.send(CONTROLLER, worker.name, message, arrived)

    # -- workers ------------------------------------------------------------------------------------------------------

    def add(self, worker: SimWorker) -> None:
        """The worker belongs to this mesh, and has a link with whoever is the controller, whom it has yet to meet."""
        worker.say, worker.answer = self._on_message, self._answered
        worker.linked = True
        self.workers[worker.name] = worker

    def join(self, worker: SimWorker) -> None:
        """The worker belongs to this mesh, and the controller meets it, if there is a controller."""
        self.add(worker)
        self.link(worker)

    def link(self, worker: SimWorker) -> None:
        """The worker is linked with the controller: for the first time, or again."""
        worker.linked = True
        if not self.down:
            self.meet(worker)
        self.happened()

    def meet(self, worker: SimWorker) -> None:
        """The controller welcomes the worker, which introduces itself."""
        worker.welcome(self.epoch)
        self._obey(self.scheduler.worker_joined(worker.hello(self._page_bytes), now=self.now))
        if self._clock_error_s is not None:
            self.scheduler.clock(worker.name, worker.offset_s)

    def unlink(self, worker: SimWorker) -> None:
        """The link with the worker breaks; what is on its way in either direction is lost. The worker goes on."""
        worker.link_out += 1
        self._lose(worker)

    def kill(self, worker: SimWorker) -> None:
        """The worker dies; what it has sent still arrives. Linked again, it is as if just started."""
        self._lose(worker)
        worker.renew()

    def _lose(self, worker: SimWorker) -> None:
        worker.linked = False
        worker.link_in += 1
        if not self.down:
            self._obey(self.scheduler.worker_lost(worker.name, now=self.now))
        self.happened()

    def _on_message(self, worker: SimWorker, message: FromWorker) -> None:
        if not worker.linked:
            return  # without a controller nothing is sent: the next one learns all from the hello
        link, epoch = worker.link_out, self.epoch

        def arrived() -> None:
            if not self.down and epoch == self.epoch and link == worker.link_out:
                self._heard(worker, message)

        self.send(worker.name, CONTROLLER, message, arrived)

    def _heard(self, worker: SimWorker, message: FromWorker) -> None:
        if self._clock_error_s is not None:
            self.scheduler.clock(worker.name, worker.offset_s + self._clock_error_s())
        if isinstance(message, wire.ActionResult):
            self._obey(self.scheduler.result(worker.name, message, now=self.now))
        else:
            self._obey(self.scheduler.prepared(worker.name, message, now=self.now))
        self.happened()

    def _answered(self, worker: SimWorker, action: wire.Infer) -> None:
        self.send(worker.name, CLIENTS, action, lambda: self._clients.answered(action))
