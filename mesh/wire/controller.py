"""The controller's socket: messages of frontends and operators, whose ids begin with "operator"; workers' are apart."""

from typing import Annotated

from msgspec import Meta

from mesh.facts import Fact, Snapshot
from mesh.wire.ranges import (
    Addresses,
    Attempt,
    Code,
    Duration,
    Extents,
    Frames,
    Id,
    Number,
    Ref,
    Refs,
    Rows,
    Span,
    Tensors,
    Text,
    Weight,
)
from mesh.wire.shared import Goodbye, Heartbeat, Introduce, Kept, Message
from mesh.wire.workers import ActionResult, Prepared, WorkerHello

ASKED_ID_MAX = 64  # characters of a client's id in the log
AskedId = Annotated[str, Meta(max_length=ASKED_ID_MAX)]


class FrontendHello(Message, frozen=True, kw_only=True, tag="frontend_hello"):
    """Frontend -> controller: I will submit requests; workers are to send outputs to `results`."""

    member: Id
    host: Id
    results: Addresses


class Submit(Message, frozen=True, kw_only=True, tag="submit"):
    """Frontend -> controller: plan this request, or refuse it at once."""

    request: Number  # the frontend's number of the request
    attempt: Attempt  # 0; higher when submitted again
    ref: Ref
    rows: Rows
    budget_s: Span  # seconds left when the envelope was sent
    weight: Weight = 1.0  # value of an answer in time, relative to other requests
    inline: Tensors = ()  # input tensors in the order of the spec, C order, little endian
    frames: Frames = 0  # not used any more
    client: Number = 0  # the frontend's number of the client that asks; 0: it does not say
    asked_id: AskedId = ""  # the client's own id, cut: for the log; empty: an application asks
    call: Number = 0  # number of the first part of the client's request; 0: this is it
    extents: Extents = ()  # of the inputs, in the model's open dimensions
    kept: Kept | None = None  # or: the frontend keeps the input tensors


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Frontend -> controller: nobody waits for this request any more. If it has ended: not as the controller thinks."""

    request: Number
    outcome: Code = ""  # what became of it for its client, a RequestOutcome; empty: cancelled


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """Controller -> frontend: this request will not be served (any more)."""

    request: Number
    attempt: Attempt
    status: Code  # rejected | failed
    code: Code
    message: Text
    predicted_s: Span | None = None  # predicted latency from arrival at the controller, if it was predicted
    retry_after_s: Duration | None = None
    alone: bool = False  # it failed by itself, in a batch of its own: the same inputs would fail again


class ClientSuspected(Message, frozen=True, kw_only=True, tag="client_suspected"):
    """Controller -> frontend: requests of this client of yours fail alone, or end processes. Who is it?"""

    client: Number  # as in Submit
    ref: Ref
    code: Code  # what became of its request
    pause_s: Duration = 0.0  # it is refused for so long; 0: it is served, in batches of its own


class HelloRefused(Message, frozen=True, kw_only=True, tag="hello_refused"):
    """Controller -> frontend: what your Hello says cannot be; nothing of yours is planned until another one comes."""

    code: Code  # a ReplyCode
    message: Text


class Serving(Message, frozen=True, kw_only=True, tag="serving"):
    """Controller -> frontend: versions that some live worker has prepared."""

    added: Refs
    removed: Refs
    reset: bool = False  # forget the versions named before
    controller: Id = ""  # the sender: another controller may answer at an address by now


class IntakeLag(Message, frozen=True, kw_only=True, tag="intake_lag"):
    """Controller -> frontend: your mail waits until I take it in. Told while that is long, and once after."""

    lag_s: Duration


class AskSnapshot(Message, frozen=True, kw_only=True, tag="ask_snapshot"):
    """Operator -> controller: send me your present state."""

    call: Number


class SnapshotReply(Message, frozen=True, kw_only=True, tag="snapshot"):
    """Controller -> operator: the answer to AskSnapshot."""

    call: int
    snapshot: Snapshot


class AskFacts(Message, frozen=True, kw_only=True, tag="ask_facts"):
    """Operator -> controller: what has ended since I last asked? The first of these starts the recording at once.

    Recording stops when the operator says so, is gone, or has not asked for a while.
    """

    call: Number
    stop: bool = False


class FactsReply(Message, frozen=True, kw_only=True, tag="facts"):
    """Controller -> operator: the answer to AskFacts; `more` facts are left, and `dropped` ones since the last reply
    were lost.
    """

    call: int
    now_s: float  # the controller's clock
    facts: tuple[Fact, ...]
    dropped: int = 0
    more: bool = False


ToController = (
    FrontendHello
    | WorkerHello
    | Submit
    | Cancel
    | Prepared
    | ActionResult
    | AskSnapshot
    | AskFacts
    | Heartbeat
    | Goodbye
)
FromControllerToFrontend = (
    Refused | Serving | ClientSuspected | HelloRefused | IntakeLag | Heartbeat | Introduce | Goodbye
)
FromControllerToOperator = SnapshotReply | FactsReply | Heartbeat | Introduce | Goodbye
