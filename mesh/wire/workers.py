"""Controller <-> worker, on the controller's socket: versions are prepared, actions ordered, results reported.

Instants are in the worker's clock.
"""

from typing import Annotated

from msgspec import Meta

from mesh.wire.ranges import (
    LISTED_MAX,
    Addresses,
    Attempt,
    Code,
    Count,
    Digest,
    Duration,
    Extents,
    Frames,
    Id,
    Instant,
    NewRef,
    Number,
    Pages,
    Ref,
    Refs,
    Rows,
    Share,
    Span,
    Tensors,
    Text,
    Texts,
)
from mesh.wire.shared import Batching, Goodbye, Heartbeat, Introduce, Kept, Message, ModelSpec, Profile


class DeviceInfo(Message, frozen=True, kw_only=True):
    """The device that a worker drives."""

    name: Id  # "cpu:0", "cuda:0", "emulated:h100/3"
    kind: Id  # key of its profiles: devices of equal kind take equal time
    pages: Pages
    page_bytes: Annotated[int, Meta(ge=1, le=1 << 48)]
    any_batch: bool  # runs any size up to the maximum, not only profiled ones
    memory_note: Text = ""
    container: Ref = ""  # ref of the one version that it serves and always holds; empty: it serves any


Places = Annotated[tuple[Annotated[int, Meta(ge=0, le=LISTED_MAX)], ...], Meta(max_length=LISTED_MAX)]  # in a list
Runs = Annotated[tuple[tuple[Rows, Rows, Extents], ...], Meta(max_length=4096)]


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """Worker -> controller: a version is prepared here (`ok`), or why it cannot be."""

    ref: NewRef
    ok: bool
    faults: Texts = ()
    spec: ModelSpec | None = None
    pages: Pages = 0
    weights_bytes: Count = 0
    profile: Profile | None = None  # None: not yet measured here
    measure: Runs = ()  # (batch, runs, extents) to be measured next, in this order; empty once there is a profile
    batching: Batching | None = None  # of a container: its durations are learned from real requests, not measured
    content: Digest = ""  # digest of what was read; empty if no weights are read
    code: Code = ""  # the kind of the faults
    order: Number = 0  # the last PREPARE or FORGET of it that was obeyed before this was said; 0: it does not say


class WorkerHello(Message, frozen=True, kw_only=True, tag="worker_hello"):
    """Worker -> controller: what I am and what I hold."""

    member: Id
    host: Id
    device: DeviceInfo
    free_pages: Pages
    resident: Refs  # refs whose weights are in the arena
    prepared: Annotated[tuple[Prepared, ...], Meta(max_length=LISTED_MAX)]


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Controller -> worker: I own you from now on, at the epoch of this envelope; drop actions of older epochs."""

    controller: Id = ""  # the sender: another controller may answer at an address by now


class Frontends(Message, frozen=True, kw_only=True, tag="frontends"):
    """Controller -> worker: all frontends that an INFER may name, and the addresses where they take outputs."""

    results: Annotated[dict[Id, Addresses], Meta(max_length=LISTED_MAX)]  # {member id: addresses}


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Controller -> worker: read and validate this version, pin its weights, make it executable."""

    ref: Ref
    content: Digest = ""  # digest that it must have; empty: it has never been served
    order: Number = 0  # number that no other order has, for reports to name


class Forget(Message, frozen=True, kw_only=True, tag="forget"):
    """Controller -> worker: this version will not be asked for again; free all it holds."""

    ref: Ref
    order: Number = 0  # as of Prepare


class Load(Message, frozen=True, kw_only=True, tag="load"):
    """Controller -> worker: copy the weights into free pages; start inside the window."""

    action: Number
    ref: Ref
    earliest_s: Instant
    latest_s: Instant
    expected_s: Duration


class Unload(Message, frozen=True, kw_only=True, tag="unload"):
    """Controller -> worker: give back the pages of this version at once."""

    action: Number
    ref: Ref


class Part(Message, frozen=True, kw_only=True):
    """One request's part of a batch."""

    frontend: Id
    request: Number
    attempt: Attempt
    rows: Rows
    predicted_s: Span  # latency that admission predicted; copied into the answer
    inline: Tensors = ()
    frames: Frames = 0  # not used any more
    cold: bool = False  # no device held the model when the request arrived; copied into the answer
    extents: Extents = ()  # of the request's inputs, in the model's open dimensions
    kept: Kept | None = None  # in place of `inline`: the frontend keeps the inputs


class Infer(Message, frozen=True, kw_only=True, tag="infer"):
    """Controller -> worker: INPUT, EXEC (starts inside the window), OUTPUT. Without parts it is a measuring run."""

    action: Number
    ref: Ref
    earliest_s: Instant
    latest_s: Instant
    expected_s: Duration
    batch: Rows  # rows that EXEC computes: the sum over the parts, padded where the device needs it
    parts: Annotated[tuple[Part, ...], Meta(max_length=LISTED_MAX)] = ()
    overdue_s: Instant = 0.0  # of a container: if it has not ended by then, its code hangs; 0: no such limit
    cold_s: Duration = 0.0  # added to that limit while no batch has succeeded in the process of the container's code
    extents: Extents = ()  # that EXEC computes: at least those of every part


class Revoke(Message, frozen=True, kw_only=True, tag="revoke"):
    """Controller -> worker: nobody waits for this INFER any more. If its EXEC has not begun, it ends as `revoked`."""

    action: Number


class ActionResult(Message, frozen=True, kw_only=True, tag="result"):
    """Worker -> controller: the outcome of an action. Instants in the worker's clock, None if not reached."""

    action: Number
    kind: Code  # an ActionKind
    code: Code  # an ActionCode
    received_s: Instant
    free_pages: Pages
    message: Text = ""
    begin_s: Instant | None = None  # start of the copy (LOAD) or of EXEC
    end_s: Instant | None = None
    duration_s: Duration | None = None  # measured by the device
    input_s: Duration | None = None  # duration of INPUT
    output_s: Duration | None = None  # duration of OUTPUT
    gathered: bool = False  # EXEC first had to gather the weights from their pages
    clock_mhz: Share = 0.0  # SM clock; 0: unknown
    fetched_bytes: Count = 0  # of inputs that frontends had to send for it
    fetch_s: Duration | None = None  # until the last came, from when the first was to be asked for; None: none
    missing: Places = ()  # parts that were left out of the batch, because their inputs were not there in time
    ended: Places = ()  # parts that were left out of it, because their frontends said that they had ended


FromControllerToWorker = (
    Welcome | Frontends | Prepare | Forget | Load | Unload | Infer | Revoke | Heartbeat | Introduce | Goodbye
)
