"""What the applications' core is told (events) and what it wants done (orders). Plain values: no sockets, no threads.

An order that has an outcome carries a `number`, and the event with its outcome carries the same number.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from frontend.core import protocol
from frontend.core.protocol import ClientAnswer, RequestRefused
from mesh import wire
from mesh.codes import ActionCode, AnswerStatus, ErrorCode, FeedbackReason
from mesh.sizes import Extents
from selection.base import Array, Observation, Policy, State
from selection.contexts import Key

Client = Hashable  # the connection that an answer goes to


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one model, or the application, gives no answer; or why the answer is the default."""

    status: AnswerStatus
    code: ErrorCode | ActionCode
    message: str
    predicted_ms: float | None = None
    retry_after_ms: float | None = None

    @classmethod
    def of(
        cls, status: str, code: str, message: str, predicted_ms: float | None, retry_after_ms: float | None
    ) -> "Failure":
        """Returns the failure that these strings of an answer are; what only a newer mesh knows is UNNAMED."""
        known = ErrorCode.named(code) or ActionCode.named(code) or ErrorCode.UNNAMED
        return cls(AnswerStatus.named(status) or AnswerStatus.FAILED, known, message, predicted_ms, retry_after_ms)


# ---------------------------------------------------------------------------------------------------------------------
# events


@dataclass(frozen=True, slots=True)
class ClientAsked:
    """A client's request arrived: a question, feedback, or a call about applications themselves."""

    client: Client
    request: protocol.InferRequest | protocol.AppRequest
    frames: Sequence[Any]  # tensors of a question that travel outside its header
    received_s: float  # the clock that `now` reads
    asker: int = 0  # who asks, as the controller tells clients apart


@dataclass(frozen=True, slots=True)
class QuestionCancelled:
    """A client waits for the answer to its question no longer."""

    client: Client
    id: int | str


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A connection is closed: nobody waits for the answers to its questions."""

    client: Client


@dataclass(frozen=True, slots=True)
class ModelAnswered:
    """The outputs for one `Ask` are there."""

    number: int
    outputs: Sequence[bytes | memoryview]  # one buffer per output of the model, C order, little endian
    cached: bool = False  # the prediction cache had them


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """One `Ask` will get no outputs."""

    number: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class StateRead:
    """The store has been read, or could not be: then `error` says why."""

    key: Key
    listing: int | None  # as in ReadState
    state: State | None  # None: the store has none
    error: str = ""


class StoreOutcome(StrEnum):
    """What became of an order to the store."""

    DONE = "done"
    HELD = "held"  # the store is down; the order is kept, and its outcome is told a second time
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class FeedbackStored:
    """The outcome of one `Learn`."""

    number: int
    outcome: StoreOutcome
    state: State | None = None  # after DONE: with the feedback in it
    why: str = ""  # after REFUSED


@dataclass(frozen=True, slots=True)
class DecisionClaimed:
    """The outcome of one `Claim`."""

    number: int
    outcome: StoreOutcome
    known: bytes | None = None  # after DONE: as Store.claim gives it
    why: str = ""  # after REFUSED


@dataclass(frozen=True, slots=True)
class StoreChanged:
    """The store of selection states went down or came back, or its queue filled up or has room again."""

    down: str = ""  # why it cannot be reached; empty while it can be
    full: bool = False  # so much is queued for it that no feedback is accepted


@dataclass(frozen=True, slots=True)
class BrokerUnreachable:
    """A `CallBroker` could not be sent."""

    call: int


StoreEvent = StateRead | FeedbackStored | DecisionClaimed
AppEvent = (
    ClientAsked
    | QuestionCancelled
    | ClientGone
    | ModelAnswered
    | ModelFailed
    | StoreEvent
    | StoreChanged
    | BrokerUnreachable
)
Event = AppEvent | wire.Table | wire.CallReply

# ---------------------------------------------------------------------------------------------------------------------
# orders to the frontend


@dataclass(frozen=True, slots=True)
class Ask:
    """One model is to be asked.

    A `ModelAnswered` or a `ModelFailed` with this number follows, exactly one, unless it is withdrawn before.
    """

    number: int
    model: str  # it has a version that can be served
    rows: int
    tensors: Sequence[bytes | memoryview]  # one per input of the model's spec
    received_s: float  # of the client's request
    deadline_s: float
    weight: float
    use_cache: bool
    asker: int = 0  # who asks, as the controller tells clients apart
    extents: Extents = ()  # of the inputs, in the model's open dimensions


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The outcome of this `Ask` is not needed any more, and not told."""

    number: int


@dataclass(frozen=True, slots=True, eq=False)
class SendAnswer:
    """The one answer to a question leaves. The sender adds `outputs` and `latency_ms` to it."""

    client: Client
    answer: ClientAnswer
    outputs: Sequence[tuple[wire.TensorSpec, Array]]
    framed: bool  # the outputs travel as frames of their own
    received_s: float  # the latency counts from here
    deadline_s: float  # of the question
    gone: bool = False  # the client is: the answer is counted, and not sent


@dataclass(frozen=True, slots=True)
class Tell:
    """The answer to anything but a question leaves."""

    client: Client
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refuse:
    """A request is answered with an error."""

    client: Client
    invalid: RequestRefused
    question: protocol.InferRequest | None = None  # None: it is something else that is refused


@dataclass(frozen=True, slots=True)
class CallBroker:
    """The broker is to change an application. A `wire.CallReply` or `BrokerUnreachable` may follow."""

    message: wire.PutApp | wire.DropApp


FrontendOrder = Ask | Withdraw | SendAnswer | Tell | Refuse | CallBroker

# ---------------------------------------------------------------------------------------------------------------------
# orders to the store


@dataclass(frozen=True, slots=True)
class ReadState:
    """A state is to be read. `listing`: the call of `apps` that it is read for; None: it is read to serve."""

    key: Key
    listing: int | None = None


@dataclass(frozen=True, slots=True)
class Learn:
    """An observation is to enter a state."""

    number: int
    key: Key
    policy: Policy
    models: Sequence[str]  # all of the application
    observation: Observation


@dataclass(frozen=True, slots=True)
class Park:
    """A decision is to be stored where other frontends find it, as the feedback may reach any of them."""

    decision: str
    known: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A parked decision is to be taken out: only the first frontend that asks gets it."""

    number: int
    decision: str
    hold: bool  # keep this order while the store is down


@dataclass(frozen=True, slots=True)
class Drop:
    """Everything that this application learned is to be deleted."""

    app: str


StoreOrder = ReadState | Learn | Park | Claim | Drop

# ---------------------------------------------------------------------------------------------------------------------
# facts, for the log


@dataclass(frozen=True, slots=True)
class NotServed:
    """An application is defined, and cannot be in effect at this frontend."""

    app: str
    why: str


@dataclass(frozen=True, slots=True)
class PolicyRaised:
    """A policy raised an exception, or gave what cannot be used; the request at hand failed."""

    app: str
    why: str


@dataclass(frozen=True, slots=True)
class HeldFeedbackLost:
    """Feedback was answered with "held", and then could not be applied."""

    decision: str
    reason: FeedbackReason | ErrorCode  # that its answer would have had
    why: str


Fact = NotServed | PolicyRaised | HeldFeedbackLost
Order = FrontendOrder | StoreOrder | Fact
