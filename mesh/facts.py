"""What a controller reports of its past and its present: log records, and the snapshot that operators ask for.

Instants are seconds of the controller's monotonic clock. A log's header and every reply carry a reading of that clock.
"""

import msgspec

LOG_VERSION = 2  # of the lines below; raised when a field is removed, a line added, or a meaning changed
LOG_VERSIONS = (1, 2)  # what can be read; version 1 had no `amended` lines, and called time-outs `cancelled`


class RequestFact(msgspec.Struct, frozen=True, kw_only=True, tag="request", tag_field="kind", gc=False):
    """One request that has ended: a line of the request log."""

    frontend: str  # member id
    request: int  # the frontend's number; (frontend, request) is unique
    ref: str  # "resnet18:1"
    rows: int
    weight: float
    arrived_s: float  # when it left the frontend
    slo_s: float  # its budget from arrived_s on
    outcome: str  # a RequestOutcome
    code: str  # reason of a rejected or failed one; else ""
    latency_s: float  # from arrived_s until EXEC ended, or until it was refused
    predicted_s: float | None  # latency that admission predicted; None: admission never looked at it
    queued_s: float | None  # from arrived_s until its last INFER was sent; None: none was sent
    exec_s: float | None  # EXEC of its batch, measured by the device; None: not executed
    batch: int  # rows that EXEC of its batch computed, padding included; 0: not executed
    device: str  # "cuda:0"; "": not executed
    worker: str  # member id; "": not executed
    action: int  # its INFER in the action log; 0: not executed
    cold: bool  # no device held its model when it arrived
    tries: int  # INFERs that contained it and failed
    asked_id: str = ""  # the client's own id, to 64 characters; "": an application asked
    call: int = 0  # of a further part of a larger request: the number of its first part; else 0
    client: int = 0  # the frontend's number of who asked; 0: it did not say
    extents: tuple[int, ...] = ()  # of its inputs, in the model's open dimensions


class AmendedFact(msgspec.Struct, frozen=True, kw_only=True, tag="amended", tag_field="kind", gc=False):
    """A request whose line is written already ended otherwise for its client: a line of the request log behind it.

    Where no earlier line has its number, the request never reached this controller.
    """

    frontend: str
    request: int
    outcome: str  # what holds, a RequestOutcome


class ActionFact(msgspec.Struct, frozen=True, kw_only=True, tag="action", tag_field="kind", gc=False):
    """One action that has ended: a line of the action log."""

    action: int  # unique in one life of the controller
    type: str  # load | unload | infer
    code: str  # "ok", or why it failed
    ref: str
    worker: str  # member id
    device: str  # "cuda:0"
    batch: int  # rows that EXEC computes, padding included; 0: not an INFER
    requests: int  # requests in the batch; 0 for an INFER: a measuring run
    in_time: int  # of those requests, answered in time
    sent_s: float
    earliest_s: float  # start of its window: it must not begin before
    latest_s: float  # end of its window: it must not begin after
    expected_begin_s: float
    expected_end_s: float
    expected_s: float  # predicted duration
    received_s: float  # when the worker received it
    begin_s: float | None  # start of the copy (LOAD) or of EXEC; None: not begun
    end_s: float | None
    duration_s: float | None  # measured by the device
    error_s: float | None  # duration_s - expected_s
    input_s: float | None  # duration of INPUT
    output_s: float | None  # duration of OUTPUT
    result_s: float  # when the controller had its result
    gathered: bool  # EXEC first had to gather the weights from their pages
    clock_mhz: float  # 0: unknown
    waiting: int  # requests waiting in this controller at result_s
    free_pages: int  # of the device, when the worker sent the result
    rows: int = 0  # rows that were asked for: `batch` without its padding; 0: no INFER, or a measuring run
    extents: tuple[int, ...] = ()  # that EXEC computes, in the model's open dimensions
    fetched_bytes: int = 0  # of inputs that the worker had to fetch from frontends
    fetch_s: float | None = None  # until the last came, from when the first was to be asked for; None: none
    missing: int = 0  # requests that were left out, because their inputs were not there in time


Fact = RequestFact | AmendedFact | ActionFact


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag="dropped", tag_field="kind"):
    """A line of either log: this many lines are missing here, because the disk was too slow."""

    count: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of every log file."""

    log: str  # requests | actions
    version: int
    controller: str  # member id
    policy: str
    clock_s: float  # the controller's clock when the file was begun
    unix_s: float  # the time of day at that moment


# ---------------------------------------------------------------------------------------------------------------------
# the present


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles of the most recent values; None if there are none."""

    count: int  # values that the quantiles are computed from
    p50: float | None = None
    p99: float | None = None


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How often values fell between fixed bounds, since the process started."""

    counts: tuple[int, ...]  # of values up to each bound and above the one before; the last: above all bounds
    sum: float  # of the values


class LabelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of one model, or all models without a label together; since the controller started.

    A distribution is None while it is empty. Durations are seconds.
    """

    in_time: int
    late: int
    timed_out: int
    refused: int
    cold: int
    queue_s: Distribution | None  # from arrival until the INFER that served it was sent, of each request
    exec_s: Distribution | None  # EXEC as the device measured it, of each batch
    slack_s: Distribution | None  # deadline minus end of EXEC, of each request; 0: it was late
    latency_error: Distribution | None  # |actual - predicted| / actual: of the latency predicted at admission, ...
    exec_error: Distribution | None  # ... of EXEC durations
    load_error: Distribution | None  # ... and of LOAD durations
    elements: int = 0  # of a model with open dimensions: rows x extents, of the requests in batches that were executed
    elements_computed: int = 0  # the same of the batches themselves: with all padding


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
    heard_ago_s: float  # since the worker's last message
    clock_offset_s: float
    exec_busy_s: float  # EXEC time since it joined
    load_busy_s: float
    exec_pending: int  # INFERs sent and not ended
    load_pending: int
    batches: int
    loads: int
    failed: int  # actions that failed
    prepared: int  # versions that it can serve
    resident: int  # versions in its pages
    places: tuple[Place, ...]  # the most recently used resident ones, at most PLACES_MAX


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model; counts since it was deployed, as the controller saw it."""

    ref: str
    devices: int  # on which it is resident or being loaded
    ready: int  # devices that have it prepared
    waiting: int
    rate: float  # requests per second, a moving estimate
    in_time: int
    late: int
    refused: int  # rejected and failed
    cold: int
    timed_out: int = 0


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """The logs of one controller."""

    on: bool
    folder: str = ""
    written: int = 0  # lines
    dropped: int = 0  # lines
    waiting: int = 0  # lines
    fault: str = ""  # the last error of the disk, if writing failed


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The present state of one controller. Counts and busy times are totals: the difference of two gives a rate."""

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
    cold: int  # requests whose model no device held
    refused: dict[str, int]  # {code: requests}
    failed_actions: dict[str, int]  # {code: actions}
    batches: int
    batched_rows: int
    loads: int
    unloads: int
    latency_s: Spread  # of answered requests, until EXEC ended
    exec_error: Spread  # |actual - predicted| / actual, of EXEC durations
    load_error: Spread  # the same of LOAD durations
    latency_error: Spread  # the same of latencies predicted at admission
    devices: tuple[DeviceState, ...]
    models: tuple[ModelState, ...]  # the busiest, at most MODELS_MAX
    models_total: int
    journal: JournalState
    revoked: int = 0  # INFERs that were taken back before they began, as nobody waited for them any more
    computed_for_nobody: int = 0  # requests that were executed after they had been given up
    rows_for_nobody: int = 0  # rows of these
    timed_out: int = 0  # given up by their frontends at their deadlines
    bounds: dict[str, tuple[float, ...]] = {}  # {field of a LabelRecord, without its unit: bounds of its distribution}
    records: dict[str, LabelRecord] = {}  # {model with a label: it}; "other": all without; only what was asked
    tried_apart: int = 0  # requests that were executed again apart, because their batch failed; each time counts
    tried_alone: int = 0  # requests that were executed again alone, because a process had died
    quarantines: int = 0  # times that a client, or an input, was refused for a while
    failed_s: float = 0.0  # device time of what failed while it was executed apart
    lines_folded: int = 0  # lines of the controller's own log that were counted in another line
    lines_dropped: int = 0  # that were lost, because nobody read them
    amended: dict[str, int] = {}  # {outcome: requests that ended so for their clients, and are counted otherwise}
    elements: int = 0  # of all models with open dimensions, as in LabelRecord; so below
    elements_computed: int = 0
    left_out: int = 0  # requests without which a batch ran, as their inputs had not come in time; each time counts
