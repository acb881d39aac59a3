"""The frontend's shell: connects clients with controllers and workers by way of the request table."""

import os
import time
from collections.abc import Sequence
from typing import Any, assert_never, cast

import structlog

from frontend.applications import ApplicationsShell
from frontend.calls import ModelCalls
from frontend.cancellation import Cancellation
from frontend.core import protocol
from frontend.core.applications.messages import (
    Ask,
    BrokerUnreachable,
    CallBroker,
    ClientAsked,
    FrontendOrder,
    Refuse,
    SendAnswer,
    Tell,
    Withdraw,
)
from frontend.core.cache import PredictionCache
from frontend.core.checking import unforeseen
from frontend.core.early import Early, EarlyRequests
from frontend.core.evaluations import Evaluations
from frontend.core.inbox import may_wait
from frontend.core.junk import Junk
from frontend.core.open_calls import Call
from frontend.core.openings import Openings
from frontend.core.outcomes import Outcomes
from frontend.core.protocol import RequestRefused
from frontend.core.requests import RequestTable
from frontend.core.starting import StartingContainers
from frontend.core.targets import Targets
from frontend.replies import Replies
from frontend.reports import describe_members, describe_models
from frontend.suspects import Suspects
from frontend.transport import ClientId, ClientPort
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode, RequestOutcome
from mesh.doing import note
from mesh.net.registrar import Registrar
from mesh.process import logs
from mesh.process.compiled import form
from mesh.process.ids import host_id, member_id
from mesh.process.runtime import Runtime
from mesh.process.timers import Alarm
from mesh.wire import Buffer

INBOX_DIVISOR = 16  # messages that wait for their turn take this part of GEARMESH_IN_FLIGHT_MB, in addition to it,
INBOX_BYTES_MIN = 1 << 20  # or that
JUNK_TOLD_S = 5.0  # between two lines about connections that were closed for what they sent
UNNAMED_BUDGET_S = 1.0  # of what is no request for an answer, or of a model that is not known
APPLICATIONS = "applications"  # in place of the connection, for a call that an application made
INFER = protocol.InferRequest.__struct_config__.tag
CANCEL = protocol.CancelRequest.__struct_config__.tag  # what ends work is never refused
log = structlog.get_logger("frontend")


class FrontendService:
    """One port for clients, one for workers' outputs, and links to all controllers."""

    def __init__(self, runtime: Runtime, broker: tuple[str, ...] = ()) -> None:
        settings = self.settings = runtime.settings
        self._hub = runtime.hub
        self._transport = runtime.transport
        bytes_max = settings.in_flight_mb << 20
        self._requests = RequestTable(settings.in_flight_max, bytes_max)
        self._early = EarlyRequests(settings.in_flight_max, bytes_max, settings.slo_ms_max)
        self._cache: PredictionCache[Call] = PredictionCache(settings.cache_mb << 20)
        self._evaluations = Evaluations(self._requests, self._cache)
        self._clients = ClientPort(
            runtime.hub, self._client_message, self._worth, self.client_gone,
            inbox_bytes_max=max(INBOX_BYTES_MIN, bytes_max // INBOX_DIVISOR),
        )  # fmt: skip
        self._outcomes = Outcomes()
        self._replies = Replies(self._clients.outbox, self._outcomes)
        self.address = ""  # where clients connect, once it listens
        self._id = member_id("frontend")
        incarnation = self._id.rpartition("-")[2]
        self._applications = ApplicationsShell(
            settings, incarnation, runtime.hub.loop, self._perform, runtime.hub.schedule_turn
        )
        self._broker = broker or (settings.broker_address,)
        self._registrar: Registrar | None = None
        self._suspects = Suspects(self._clients.reception)
        self._targets = Targets(settings.rows_max)
        self._openings = Openings(self._requests, self._targets, settings.slo_ms_max)
        self._starting = StartingContainers()
        self._addresses: tuple[str, ...] = ()  # where workers send outputs, once it listens
        self._calls = ModelCalls(
            runtime, self._evaluations, self._targets, self._starting, self._replies, self._outcomes, self._hello,
            self._suspects.told, self._applications.handle,
        )  # fmt: skip
        self._controllers = self._calls.controllers
        self._cancellation = Cancellation(
            self._evaluations, self._early, self._applications, self._calls, self._replies
        )
        self._alarm: Alarm | None = None
        self._started_s = time.monotonic()
        self._junk = Junk()
        self._told_junk_s = float("-inf")
        self._draining = False
        self._knows = False  # a table has arrived: till then no client may be told that something does not exist

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listens, and calls the broker."""
        settings = self.settings
        self.address = self._clients.listen(settings.host, settings.frontend_port, settings.request_bytes_max)
        self._addresses = self._calls.results.listen(settings.host)
        member = wire.Member(
            id=self._id,
            role="frontend",
            host=host_id(),
            endpoints={"clients": (self.address,), "results": self._addresses},
            pid=os.getpid(),
        )
        self._registrar = Registrar(
            self._transport, self._broker, member, self._table_changed, self._applications.handle
        )
        self._registrar.start()
        self._applications.start()
        self._alarm = Alarm(self._hub.loop, self._ring)
        self._hub.on_turn(self._turn)
        log.info("started", member=self._id, address=self.address, pid=os.getpid())

    def drain(self) -> bool:
        """Rejects further requests. Returns True once every request is answered."""
        self._draining = self._openings.draining = True
        waiting = len(self._requests) + len(self._applications) + len(self._early) + self._clients.requests_waiting
        return waiting == 0

    def stop(self) -> None:
        """Answers all open requests, and those that have not been looked at, and says goodbye to every peer."""
        self._draining = self._openings.draining = True
        self._applications.stop()
        text = "the frontend is being stopped"
        for client, header in self._clients.waiting():
            if (brief := protocol.brief(header)) is not None:
                self._replies.refuse_unread(
                    client, RequestRefused(ErrorCode.STOPPING, text, None, brief.id, AnswerStatus.FAILED), brief
                )
        for early in self._early.release():
            refusal = RequestRefused(ErrorCode.STOPPING, text, None, early.request.id, AnswerStatus.FAILED)
            self._refuse(early, refusal)
        self._calls.stop()
        self._clients.flush()  # whoever stops us may not wait for a turn
        if self._registrar is not None:
            self._registrar.stop()
        if self._alarm is not None:
            self._alarm.close()
        self._hub.loop.call_soon(self._calls.close)
        self._hub.loop.call_soon(self._clients.close)
        log.info("stopped", member=self._id, answers=self._replies.answers)

    def _hello(self) -> wire.FrontendHello:
        return wire.FrontendHello(member=self._id, host=host_id(), results=self._addresses)

    # -- from clients -------------------------------------------------------------------------------------------------

    def _worth(self, client: ClientId, header: Buffer, arrived_s: float, more_s: float) -> bool:
        """Whether this message, which will wait for so much longer, is worth it. If not, it is refused, unread."""
        brief = protocol.brief(header)
        if brief is None or brief.op == CANCEL:
            return True
        target = self._targets.bound.get(brief.model or "")
        slo_ms = brief.slo_ms if brief.slo_ms is not None else target.spec.slo_ms if target is not None else None
        budget_s = slo_ms / 1e3 if slo_ms is not None and slo_ms > 0.0 else UNNAMED_BUDGET_S  # bad ones are read
        waited_s = time.monotonic() - arrived_s
        if may_wait(waited_s if brief.op == INFER else 0.0, more_s, budget_s):
            return True
        self._replies.busy(client, brief, waited_s)
        return False

    def _no_room_for(self, client: ClientId, header: Buffer, arrived_s: float) -> bool:
        """Services are behind: if it is a request for an answer, and its client has its share of open ones, it is
        refused unread.
        """
        brief = protocol.brief(header)
        if brief is None or brief.op != INFER:
            return False
        try:
            asker = self._suspects.number(client, brief)
        except RequestRefused:
            return False
        if not self._requests.beyond(asker, self._calls.window.limit):
            return False
        self._replies.busy(client, brief, time.monotonic() - arrived_s)
        return True

    def _client_message(self, client: ClientId, header: Buffer, frames: list[Buffer], now: float) -> None:
        """A message that came at this instant, or a little later."""
        if len(self._requests) >= self._calls.window.room and self._no_room_for(client, header, now):
            return
        try:
            request = protocol.decode(header)
        except RequestRefused as invalid:
            self._junk_came(client, invalid)
            return
        except Exception as error:  # nothing has changed
            self._replies.refuse_unread(client, unforeseen(error))
            return
        if self._junk and client in self._junk:
            self._junk.good(client)
        try:
            match request:
                case protocol.InferRequest() if self._knows:  # first, and without a detour: nearly all are such
                    if not self._plain(client, request, frames, len(header), now):
                        self._infer(client, request, frames, len(header), now)
                case protocol.PingRequest():
                    self._replies.tell(client, {"id": request.id, "status": AnswerStatus.OK})
                case protocol.CancelRequest():
                    self._cancellation.cancel(client, request.id)
                case protocol.StatusRequest():
                    self._replies.tell(client, {"id": request.id, "status": AnswerStatus.OK, **self._describe()})
                case _ if not self._knows and not self._draining:
                    self._early.hold(Early(client, request, frames, now, len(header)))
                case _:
                    self._obey(client, request, frames, len(header), now)
        except RequestRefused as invalid:
            self._replies.refuse(client, invalid, request)
        except Exception as error:
            note(error, [request], str(client))
            raise

    def _junk_came(self, client: ClientId, invalid: RequestRefused) -> None:
        """The client is told what is wrong with its message; if it has sent too many of them, also that this ends."""
        self._replies.refuse_unread(client, invalid)
        now = time.monotonic()
        if not self._junk.bad(client, now):
            return
        self._replies.refuse(client, protocol.expelled())
        self._clients.expel(client)
        if now - self._told_junk_s > JUNK_TOLD_S:
            self._told_junk_s = now
            reception = self._clients.reception
            log.warning(
                "junk", peer=reception.peer_of(client.identity), expelled=reception.expelled, code=invalid.code,
                message=invalid.message,
            )  # fmt: skip

    def _obey(
        self, client: ClientId, request: protocol.Asking, frames: Sequence[Buffer], size: int, received_s: float
    ) -> None:
        """Executes the request, or starts to. Raises: RequestRefused."""
        match request:
            case protocol.InferRequest():
                self._infer(client, request, frames, size, received_s)
            case protocol.ModelsRequest():
                self._tell_models(client, request)
            case (
                protocol.CreateApp()
                | protocol.UpdateApp()
                | protocol.DeleteApp()
                | protocol.AppsRequest()
                | protocol.FeedbackRequest()
            ):
                self._applications.handle(ClientAsked(client, request, frames, received_s))
            case _:
                assert_never(request)

    def client_gone(self, client: ClientId) -> None:
        """Nothing is open on this connection, which is closed, any more: nobody is answered, and no work goes on."""
        self._junk.forget(client)
        self._cancellation.client_gone(client)
        self._hub.schedule_turn()

    def _tell_models(self, client: ClientId, request: protocol.ModelsRequest) -> None:
        starting = self._starting.states(now=time.monotonic())
        models = describe_models(self._targets.models, self._controllers, starting)
        most = self.settings.request_bytes_max
        self._replies.tell(
            client, {"id": request.id, "status": AnswerStatus.OK, "models": models, "frame_bytes_max": most}
        )

    def _release(self) -> None:
        """The first table is there: processes the requests that waited for it."""
        for early in self._early.release():
            client: Any = early.client
            try:
                self._obey(client, early.request, early.frames, early.header_bytes, early.received_s)
            except RequestRefused as invalid:
                self._refuse(early, invalid)

    def _refuse(self, early: Early, refusal: RequestRefused) -> None:
        client: Any = early.client
        self._replies.refuse(client, refusal, early.request)

    def _plain(
        self, client: ClientId, request: protocol.InferRequest, frames: Sequence[Buffer], size: int, received_s: float
    ) -> bool:
        """Opens the call of a plain request. Returns False if it is none, or something is wrong with it.

        Raises: RequestRefused, if nobody foresaw what is wrong.
        """
        if request.source is not None or self._applications.holds(client, request.id):
            return False
        try:
            asker = self._suspects.askers.number(client.identity, request)
            opened = self._openings.plain(client, request, frames, size, received_s, asker)
        except Exception as error:  # nothing has changed
            raise unforeseen(error, request.id) from error
        if opened is None:
            return False
        self._calls.enter(opened[0], opened[1], request.cache)
        return True

    def _infer(
        self, client: ClientId, request: protocol.InferRequest, frames: Sequence[Buffer], size: int, received_s: float
    ) -> None:
        """`size`: bytes of the header."""
        if self._requests.holds(client, request.id) or self._applications.holds(client, request.id):
            raise protocol.duplicate(request.id)
        asker = self._suspects.number(client, request)
        if request.app is not None:
            self._openings.check_question(request, frames, size, asker)
            self._applications.handle(ClientAsked(client, request, frames, received_s, asker))
            return
        try:
            target = self._targets.of(request)
        except RequestRefused as refused:
            raise self._starting.explained(refused, request.model, now=time.monotonic()) from None
        call, tensors = self._openings.checked(client, request, frames, size, received_s, asker, target)
        self._calls.enter(call, tensors, request.cache)

    # -- from controllers and workers ---------------------------------------------------------------------------------

    def _table_changed(self, table: wire.Table) -> None:
        self._targets.table_changed(table.models)
        self._starting.table_changed(table.members, now=time.monotonic())
        self._cache.keep_only(self._targets.editions())
        self._outcomes.table_changed(table)
        self._applications.handle(table)
        self._calls.results.keep_only(table.members)
        self._calls.inputs.table_changed(table.members)
        self._controllers.table_changed(table)
        self._knows = True
        self._release()

    # -- what applications ask for ------------------------------------------------------------------------------------

    def _perform(self, order: FrontendOrder) -> None:
        """One order of the applications is carried out."""
        match order:
            case Ask():
                self._ask_model(order)
            case Withdraw():
                given_up = self._evaluations.cancel(APPLICATIONS, order.number)
                if given_up is not None:
                    self._calls.drop(given_up.needless, RequestOutcome.CANCELLED)
                    self._outcomes.abandoned(given_up.call)
            case SendAnswer():
                self._replies.application(order)
            case Tell():
                self._replies.tell(cast(ClientId, order.client), order.message)
            case Refuse():
                self._replies.refuse(cast(ClientId, order.client), order.invalid, order.question)
            case CallBroker():
                if self._registrar is None or not self._registrar.send(order.message):
                    self._applications.handle(BrokerUnreachable(order.message.call))
            case _:
                assert_never(order)

    def _ask_model(self, ask: Ask) -> None:
        """The model is asked as if a client had asked it."""
        target = self._targets.bound[ask.model]  # the applications know the same table
        call = Call(
            APPLICATIONS, ask.number, target.ref, target.spec, ask.rows, ask.received_s, ask.deadline_s,
            False, ask.weight, ask=ask.number, asker=ask.asker, extents=ask.extents, rules=target.outputs,
            form=target.form,
        )  # fmt: skip
        self._calls.enter(call, ask.tensors, ask.use_cache)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _ring(self, now: float) -> None:
        self._calls.expire(now)
        for early, refusal in self._early.expire(now):
            self._refuse(early, refusal)
        self._applications.wake(now)
        self._hub.schedule_turn()

    def _turn(self, now: float) -> None:
        assert self._alarm is not None
        self._calls.turn(now)
        window = self._calls.window
        window.turn(len(self._requests), now)
        self._clients.strained = window.limit < window.calls_max
        self._alarm.by(self._requests.wake_at())
        self._alarm.by(self._early.wake_at())
        self._alarm.by(self._applications.wake_at())

    def _describe_links(self, table: wire.Table | None) -> list[dict[str, Any]]:
        """How the links to workers and controllers are."""
        now = time.monotonic()
        workers = [member.id for member in table.members if member.role == "gpu_worker"] if table is not None else []
        return [*self._calls.results.describe(workers, now), *self._controllers.describe(now)]

    def _describe(self) -> dict[str, Any]:
        self._replies.count_busy()
        table = self._registrar.table if self._registrar is not None else None
        return {
            "frontend": self._id,
            "uptime_s": time.monotonic() - self._started_s,
            "form": form().name,  # in which its code runs: compiled or pure
            "epoch": table.epoch if table is not None else None,
            "members": describe_members(table),
            "in_flight": len(self._requests),
            "in_flight_bytes": self._requests.bytes_held,
            "shared_bytes": self._calls.inputs.bytes_used,
            "inputs_fetched": self._calls.results.fetched,
            "inputs_crowded": self._calls.inputs.crowded,
            "answers": self._replies.answers,
            "refused": self._replies.refusals,
            "cancelled": self._replies.cancelled,
            "computed_for_nobody": self._calls.results.for_nobody,
            "rows_for_nobody": self._calls.results.rows_for_nobody,
            "outcomes": self._outcomes.told(),
            "controllers": self._controllers.heard_ago(time.monotonic()),
            "cache": self._cache.counts(),
            "applications": self._applications.report(),
            "links": self._describe_links(table),
            "link_losses": self._calls.results.losses.total + self._controllers.losses.total,
            "outputs_resent": self._calls.results.taken.resent,
            "outputs_doubled": self._calls.results.taken.doubles,
            "outputs_of_others": self._calls.results.taken.misaddressed,
            "results_refused": self._calls.results.refused,
            "controllers_reached": self._controllers.reached,
            "connections": self._clients.reception.connections,
            "disconnections": self._clients.reception.disconnections,
            "connections_refused": self._clients.reception.connections_refused,
            "accept_failed": self._clients.reception.accept_failed,
            "suspects": self._suspects.describe(),
            "unreadable": self._clients.reception.unreadable,
            "answers_dropped": self._clients.outbox.dropped,
            "answers_waiting": self._clients.outbox.waiting,
            "lines": logs.counts()._asdict(),
            "requests_waiting": self._clients.requests_waiting,
            "in_flight_limit": self._calls.window.limit,
            "expelled": self._clients.reception.expelled,
            "unheard": self._clients.unheard,
        }
