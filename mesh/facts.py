"""What a controller has to tell of its past and its present: log records, and the state that operators ask for.

Instants are seconds of the controller's monotonic clock; a log's header and every reply say what that clock shows.
"""

import msgspec

LOG_VERSION = 1  # of the lines below; raised when a field changes its meaning or goes


class RequestFact(msgspec.Struct, frozen=True, kw_only=True, tag="request", tag_field="kind", gc=False):
    """One request that has ended: a line of the request log."""

    frontend: str  # member id
    request: int  # the frontend's number; (frontend, request) is unique
    ref: str  # "resnet18:1"
    rows: int
    weight: float
    arrived_s: float  # when it left the frontend
    slo_s: float  # its budget from then on
    outcome: str  # in_time | late | rejected | failed | cancelled | frontend_lost
    code: str  # why, of a rejected or failed one; else ""
    latency_s: float  # arrived until EXEC ended, or until it was refused
    predicted_s: float | None  # latency that admission predicted; None: never looked at
    queued_s: float | None  # arrived until its (last) INFER was sent; None: it never was
    exec_s: float | None  # EXEC of its batch, as the device measured it; None: not executed
    batch: int  # rows that its batch computed; 0: not executed
    device: str  # "cuda:0"; "": not executed
    worker: str  # member id; "": not executed
    action: int  # the INFER, of the action log; 0: not executed
    cold: bool  # its model was on no device when it arrived
    tries: int  # INFERs that took it up and failed


class ActionFact(msgspec.Struct, frozen=True, kw_only=True, tag="action", tag_field="kind", gc=False):
    """One action that has ended: a line of the action log."""

    action: int  # unique in one life of the controller
    type: str  # load | unload | infer
    code: str  # "ok", or why it came to nothing
    ref: str
    worker: str  # member id
    device: str  # "cuda:0"
    batch: int  # rows that EXEC computes; 0: no INFER
    requests: int  # requests in the batch; 0 for an INFER: a measuring run
    in_time: int  # of those, answered in time
    sent_s: float
    earliest_s: float  # the window: it may begin from here
    latest_s: float  # to here
    expected_begin_s: float
    expected_end_s: float
    expected_s: float  # duration
    received_s: float  # by the worker
    begin_s: float | None  # of the copy (load) or of EXEC; None: not begun
    end_s: float | None
    duration_s: float | None  # as the device measured it
    error_s: float | None  # duration_s - expected_s
    input_s: float | None  # duration of INPUT
    output_s: float | None  # duration of OUTPUT
    result_s: float  # when the controller had its result
    gathered: bool  # EXEC had to bring the weights into its window first
    clock_mhz: float  # 0: unknown
    waiting: int  # requests that wait in this controller, at result_s
    free_pages: int  # of the device, when the worker wrote the result


Fact = RequestFact | ActionFact


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag="dropped", tag_field="kind"):
    """A line of either log: here so many lines are missing, because the disk did not keep up."""

    count: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of every log file."""

    log: str  # requests | actions
    version: int
    controller: str  # member id
    policy: str
    clock_s: float  # the controller's clock when the file was begun
    unix_s: float  # and the time of day


# ---------------------------------------------------------------------------------------------------------------------
# the present


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles of the last values seen; None without any."""

    count: int  # values that the quantiles are of
    p50: float | None = None
    p99: float | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device."""

    ref: str
    pages: int
    state: str  # loading | running | resident


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's device."""

    worker: str
    name: str
    kind: str
    pages: int
    free_pages: int
    page_bytes: int
    leaving: bool
    heard_ago_s: float  # since the worker's last word
    clock_offset_s: float
    exec_busy_s: float  # EXEC time since it joined
    load_busy_s: float
    exec_pending: int  # INFERs sent and not ended
    load_pending: int
    batches: int
    loads: int
    failed: int  # actions that came to nothing
    prepared: int  # versions that it can serve
    resident: int  # versions in its pages
    places: tuple[Place, ...]  # the most recently used of those, at most PLACES_MAX


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model; counts since the controller started."""

    ref: str
    devices: int  # where it is resident or being loaded
    ready: int  # that could serve it
    waiting: int
    rate: float  # requests per second, about
    in_time: int
    late: int
    refused: int  # rejected and failed
    cold: int


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """The logs of one controller."""

    on: bool
    folder: str = ""
    written: int = 0  # lines
    dropped: int = 0  # lines
    waiting: int = 0  # lines
    fault: str = ""  # what the disk said last, if it failed


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One controller, now. Counts and busy times are totals: rates are differences of two snapshots."""

    controller: str
    policy: str
    now_s: float
    uptime_s: float
    frontends: int
    waiting: int  # requests in queues
    open: int  # requests that have not ended
    submitted: int
    in_time: int
    late: int
    cancelled: int
    cold: int  # requests whose model was on no device
    refused: dict[str, int]  # {code: requests}
    failed_actions: dict[str, int]  # {code: actions}
    batches: int
    batched_rows: int
    loads: int
    unloads: int
    latency_s: Spread  # of answered requests, until EXEC ended
    exec_error: Spread  # |actual - predicted| / actual, of EXEC durations
    load_error: Spread  # of LOAD durations
    latency_error: Spread  # of latencies predicted at admission
    devices: tuple[DeviceState, ...]
    models: tuple[ModelState, ...]  # the busiest, at most MODELS_MAX
    models_total: int
    journal: JournalState
