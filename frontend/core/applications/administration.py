"""Applications are created, changed, deleted and listed. The broker keeps them; the store knows what they learned."""

import itertools
from dataclasses import dataclass, field
from typing import Any, assert_never

from frontend.core import protocol
from frontend.core.applications.definitions import Application, read_definition
from frontend.core.applications.descriptions import describe, describe_unserved, with_bytes
from frontend.core.applications.learned import LearnedStates
from frontend.core.applications.messages import CallBroker, Client, Drop, Order, ReadState, Refuse, StateRead, Tell
from frontend.core.applications.registry import ApplicationLimits, ApplicationRegistry
from frontend.core.protocol import RequestRefused
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode, ReplyCode
from mesh.names import NAME
from selection.contexts import check_context

REPLY_S_MAX = 5.0
CALLS_MAX = 1000
RETRY_AFTER_MS = 1000.0
AdministrativeRequest = protocol.CreateApp | protocol.UpdateApp | protocol.DeleteApp | protocol.AppsRequest


@dataclass(frozen=True, slots=True)
class BrokerCall:
    """One call of the broker that it has not answered."""

    client: Client
    id: int | str  # of the client's request
    until_s: float  # when it is given up
    forget: str  # application whose states are deleted once the broker agrees; empty: none


@dataclass(frozen=True, slots=True)
class Listing:
    """One call of `apps` while states are read for it."""

    client: Client
    id: int | str  # of the client's request
    context: str
    apps: dict[str, Application]  # those in effect when it was asked
    described: dict[str, dict[str, Any]] = field(default_factory=dict)  # {name: description}, those that are read


class Administration:
    """The calls about applications themselves."""

    def __init__(self, limits: ApplicationLimits, registry: ApplicationRegistry, learned: LearnedStates) -> None:
        self._limits, self._registry, self._learned = limits, registry, learned
        self._calls: dict[int, BrokerCall] = {}  # {number of the call: it}, oldest first
        self._listings: dict[int, Listing] = {}  # {number: it}
        self._numbers = itertools.count(1)  # of both

    def handle(self, client: Client, request: AdministrativeRequest, now: float) -> list[Order]:
        """What the request asks for is under way. Raises: RequestRefused."""
        match request:
            case protocol.AppsRequest():
                return self._list(client, request)
            case protocol.DeleteApp():
                return self._delete(client, request, now)
            case protocol.CreateApp() | protocol.UpdateApp():
                return self._put(client, request, now)
            case _:
                assert_never(request)

    def _put(self, client: Client, request: protocol.CreateApp | protocol.UpdateApp, now: float) -> list[Order]:
        create = isinstance(request, protocol.CreateApp)
        definition = read_definition(request.app)
        if create and definition.name in self._registry.apps:
            text = f"application {definition.name!r} exists already; change it with update_app"
            raise RequestRefused(ErrorCode.APP_EXISTS, text, "app.name")
        self._registry.make(definition, 0, strict=True)
        number = self._call(client, request.id, now, definition.name if create else "")
        return [CallBroker(wire.PutApp(call=number, definition=with_bytes(request.app), create=create))]

    def _delete(self, client: Client, request: protocol.DeleteApp, now: float) -> list[Order]:
        if not NAME.fullmatch(request.app):
            text = f"app must match {NAME.pattern}; got {request.app[:80]!r}"
            raise RequestRefused(ErrorCode.UNKNOWN_APP, text, "app")
        number = self._call(client, request.id, now, request.app)
        return [CallBroker(wire.DropApp(call=number, name=request.app))]

    def _call(self, client: Client, request_id: int | str, now: float, forget: str) -> int:
        """Returns the number of a new call. Raises: RequestRefused, if too many are open."""
        if len(self._calls) >= CALLS_MAX:
            text = "the broker has not answered so many calls yet"
            raise RequestRefused(ErrorCode.BUSY, text, None, None, AnswerStatus.REJECTED, RETRY_AFTER_MS)
        number = next(self._numbers)
        self._calls[number] = BrokerCall(client, request_id, now + REPLY_S_MAX, forget)
        return number

    def broker_unreachable(self, number: int) -> list[Order]:
        """The call is refused: it was not sent."""
        call = self._calls.pop(number)
        text = "the broker is not there, and only it can change applications; those that are there are served"
        invalid = RequestRefused(ErrorCode.NO_BROKER, text, None, call.id, AnswerStatus.REJECTED, RETRY_AFTER_MS)
        return [Refuse(call.client, invalid)]

    def replied(self, reply: wire.CallReply) -> list[Order]:
        """The client gets the broker's answer. What a new or deleted application had learned is deleted.

        A change that the broker could not save is in effect, and the client is told that it is not on disk.
        """
        call = self._calls.pop(reply.call, None)
        if call is None:
            return []
        unsaved = reply.code == ReplyCode.NOT_SAVED  # it is in effect nevertheless
        if not (reply.ok or unsaved):
            code = ErrorCode.named(reply.code) or ErrorCode.BAD_APP
            return [Refuse(call.client, RequestRefused(code, reply.message, reply.field or None, call.id))]
        orders: list[Order] = []
        if call.forget:
            self._learned.cache.forget(call.forget)
            orders.append(Drop(call.forget))
        if unsaved:
            invalid = RequestRefused(ErrorCode.NOT_SAVED, reply.message, None, call.id, AnswerStatus.FAILED)
            return [*orders, Refuse(call.client, invalid)]
        answer = {"id": call.id, "status": AnswerStatus.OK, "message": reply.message, "revision": reply.revision}
        return [*orders, Tell(call.client, answer)]

    def wake(self, now: float) -> list[Order]:
        """Calls that the broker has not answered in time are refused."""
        late = [number for number, call in self._calls.items() if call.until_s <= now]
        text = f"the broker did not answer within {REPLY_S_MAX:g} s; `apps` says what is in effect"
        calls = [self._calls.pop(number) for number in late]
        return [
            Refuse(call.client, RequestRefused(ErrorCode.NO_BROKER, text, None, call.id, AnswerStatus.TIMED_OUT))
            for call in calls
        ]

    def wake_at(self) -> float | None:
        """The instant from which `wake` has something to do."""
        return next((call.until_s for call in self._calls.values()), None)

    # -- listing ------------------------------------------------------------------------------------------------------

    def _list(self, client: Client, request: protocol.AppsRequest) -> list[Order]:
        """The state of each application in effect is read from the store, however fresh the one in memory is."""
        context = request.context or ""
        fault = check_context(context)
        if fault is not None:
            raise RequestRefused(ErrorCode.BAD_CONTEXT, fault, "context")
        listing = Listing(client, request.id, context, dict(sorted(self._registry.apps.items())))
        if not listing.apps:
            return [self._listed(listing)]
        number = next(self._numbers)
        self._listings[number] = listing
        return [ReadState((name, context), number) for name in listing.apps]

    def state_read(self, number: int, event: StateRead) -> list[Order]:
        """One application is described; after the last one the client gets its answer."""
        listing = self._listings[number]
        app = listing.apps[event.key[0]]
        state = self._learned.of(app, listing.context) if event.error else event.state
        listing.described[app.name] = describe(app, listing.context, state, event.error)
        if len(listing.described) < len(listing.apps):
            return []
        del self._listings[number]
        return [self._listed(listing)]

    def _listed(self, listing: Listing) -> Tell:
        unserved = self._registry.unserved.items()
        others = {name: describe_unserved(each, listing.context) for name, each in unserved}
        entries = [entry for _, entry in sorted({**others, **listing.described}.items())]
        most = self._limits.request_bytes_max
        return Tell(
            listing.client, {"id": listing.id, "status": AnswerStatus.OK, "apps": entries, "frame_bytes_max": most}
        )
