"""Controller <-> worker, on the controller's socket: versions are prepared, actions ordered, results reported.

Instants are in the worker's clock.
"""

from mesh.wire.shared import Batching, Goodbye, Heartbeat, Introduce, Message, ModelSpec, Profile


class DeviceInfo(Message, frozen=True, kw_only=True):
    """The device that a worker drives."""

    name: str  # "cpu:0", "cuda:0", "emulated:h100/3"
    kind: str  # key of its profiles: devices of equal kind take equal time
    pages: int
    page_bytes: int
    any_batch: bool  # runs any size up to the maximum, not only profiled ones
    memory_note: str = ""
    container: str = ""  # ref of the one version that it serves and always holds; empty: it serves any


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """Worker -> controller: a version is prepared here (`ok`), or why it cannot be."""

    ref: str
    ok: bool
    faults: tuple[str, ...] = ()
    spec: ModelSpec | None = None
    pages: int = 0
    weights_bytes: int = 0
    profile: Profile | None = None  # None: not yet measured here
    measure: tuple[tuple[int, int], ...] = ()  # (batch, runs) still to be measured; empty once there is a profile
    batching: Batching | None = None  # of a container: its durations are learned from real requests, not measured
    content: str = ""  # digest of what was read; empty if no weights are read
    code: str = ""  # the kind of the faults
    order: int = (
        0  # the last PREPARE or FORGET of it that was obeyed before this was said; 0: it does not say
    )


class WorkerHello(Message, frozen=True, kw_only=True, tag="worker_hello"):
    """Worker -> controller: what I am and what I hold."""

    member: str
    host: str
    device: DeviceInfo
    free_pages: int
    resident: tuple[str, ...]  # refs whose weights are in the arena
    prepared: tuple[Prepared, ...]


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Controller -> worker: I own you from now on, at the epoch of this envelope; drop actions of older epochs."""

    controller: str = ""  # the sender: another controller may answer at an address by now


class Frontends(Message, frozen=True, kw_only=True, tag="frontends"):
    """Controller -> worker: all frontends that an INFER may name, and the addresses where they take outputs."""

    results: dict[str, tuple[str, ...]]  # {member id: addresses}


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Controller -> worker: read and validate this version, pin its weights, make it executable."""

    ref: str
    content: str = ""  # digest that it must have; empty: it has never been served
    order: int = 0  # number that no other order has, for reports to name


class Forget(Message, frozen=True, kw_only=True, tag="forget"):
    """Controller -> worker: this version will not be asked for again; free all it holds."""

    ref: str
    order: int = 0  # as of Prepare


class Load(Message, frozen=True, kw_only=True, tag="load"):
    """Controller -> worker: copy the weights into free pages; start inside the window."""

    action: int
    ref: str
    earliest_s: float
    latest_s: float
    expected_s: float


class Unload(Message, frozen=True, kw_only=True, tag="unload"):
    """Controller -> worker: give back the pages of this version at once."""

    action: int
    ref: str


class Part(Message, frozen=True, kw_only=True):
    """One request's part of a batch."""

    frontend: str
    request: int
    attempt: int
    rows: int
    predicted_s: float  # latency that admission predicted; copied into the answer
    inline: tuple[memoryview, ...] = ()
    frames: int = 0
    cold: bool = False  # no device held the model when the request arrived; copied into the answer


class Infer(Message, frozen=True, kw_only=True, tag="infer"):
    """Controller -> worker: INPUT, EXEC (starts inside the window), OUTPUT. Without parts it is a measuring run."""

    action: int
    ref: str
    earliest_s: float
    latest_s: float
    expected_s: float
    batch: int  # rows that EXEC computes: the sum over the parts, padded where the device needs it
    parts: tuple[Part, ...] = ()
    overdue_s: float = 0.0  # of a container: if it has not ended by then, its code hangs; 0: no such limit
    cold_s: float = 0.0  # added to that limit while no batch has succeeded in the process of the container's code


class Revoke(Message, frozen=True, kw_only=True, tag="revoke"):
    """Controller -> worker: nobody waits for this INFER any more. If its EXEC has not begun, it ends as `revoked`."""

    action: int


class ActionResult(Message, frozen=True, kw_only=True, tag="result"):
    """Worker -> controller: the outcome of an action. Instants in the worker's clock, None if not reached."""

    action: int
    kind: str  # an ActionKind
    code: str  # an ActionCode
    received_s: float
    free_pages: int
    message: str = ""
    begin_s: float | None = None  # start of the copy (LOAD) or of EXEC
    end_s: float | None = None
    duration_s: float | None = None  # measured by the device
    input_s: float | None = None  # duration of INPUT
    output_s: float | None = None  # duration of OUTPUT
    gathered: bool = False  # EXEC first had to gather the weights from their pages
    clock_mhz: float = 0.0  # SM clock; 0: unknown


FromControllerToWorker = (
    Welcome | Frontends | Prepare | Forget | Load | Unload | Infer | Revoke | Heartbeat | Introduce | Goodbye
)
