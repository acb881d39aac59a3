"""Every message between services: frozen structs, one union per socket and direction.

A message on the wire is one msgpack array, an `Envelope`, with everything that its sender had for that peer in one turn
of its loop. Tensors too large to travel inline follow as frames of their own, in the order of the messages that own
them. Fields are positional: new ones are appended with a default, none is ever retyped or removed.

A *ref* names one version of one model: ``"resnet18:1"``.
"""

from typing import Generic, TypeVar

import msgspec

from mesh.facts import Fact, Snapshot

Buffer = bytes | memoryview  # a tensor's bytes, in a frame of their own
INLINE_BYTES_MAX = 32 * 1024  # larger tensors travel as frames of their own, so that the codec never copies them


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """A message between two services."""


def ref_of(name: str, version: str) -> str:
    """The ref of one version of a model."""
    return f"{name}:{version}"


def split_ref(ref: str) -> tuple[str, str]:
    """(name, version) of a ref."""
    name, _, version = ref.rpartition(":")
    return name, version


# ---------------------------------------------------------------------------------------------------------------------
# shared parts


class TensorSpec(Message, frozen=True, kw_only=True):
    """Name, dtype and shape of one input or output; the first dimension is the batch, -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelSpec(Message, frozen=True, kw_only=True):
    """What a client may send to one version of a model, and what it gets back."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_max: int  # rows in the largest batch
    slo_ms: float  # budget of a request that names none
    cacheable: bool = True
    labels: tuple[str, ...] = ()  # class names of the first output; empty: none
    batch_sizes: tuple[int, ...] = ()  # sizes that were profiled
    build: str = ""  # of a container's version: changes when its code may have; older answers are then not reused

    def edition(self, ref: str) -> str:
        """A name of the version and its build: cached answers may be reused while it is equal."""
        return f"{ref}#{self.build}" if self.build else ref


class Batching(Message, frozen=True, kw_only=True):
    """How the batch sizes of a black-box container are chosen."""

    method: str = "aimd"  # aimd | quantile | fixed | none
    objective_s: float = 0.05  # EXEC of a batch should take no longer
    size: int = 1  # of `fixed`: the largest batch
    wait_s: float = 0.0  # a batch that is not full may wait this long for expected requests


class Profile(Message, frozen=True, kw_only=True):
    """Durations of one version of a model on one kind of device, measured there (seconds)."""

    exec_s: dict[int, float]  # {batch: median EXEC duration}
    load_s: float  # median LOAD duration
    exec_p99_s: dict[int, float] = {}
    engine: str = ""  # how it was executed: "eager", "compiled", ...
    load_from: str = "host"  # where that LOAD read the weights from: "host" memory or "disk"


class Offer(Message, frozen=True, kw_only=True):
    """What a container's worker offers: one version of a model that is in no repository."""

    ref: str
    spec: ModelSpec
    code: str  # the version's content: digest of its code, inputs, outputs and labels; equal for replicas


class Member(Message, frozen=True, kw_only=True):
    """One running service."""

    id: str  # role and incarnation, "frontend-5f3a9c": a restarted service is a new member
    role: str  # controller | gpu_worker | frontend
    host: str  # boot id of its machine: members with the same one share memory and loopback
    endpoints: dict[str, tuple[str, ...]] = {}  # {"control" | "results" | "clients": addresses, preferred first}
    pid: int = 0
    offer: Offer | None = None  # of a worker that is a container


class ModelEntry(Message, frozen=True, kw_only=True):
    """One model in the routing table."""

    name: str
    current: str | None  # version that new requests are bound to
    target: str | None  # version being prepared, to become current
    versions: tuple[str, ...]  # known to the catalogue, oldest first
    owner: str | None  # member id of the controller that schedules it
    spec: ModelSpec | None = None  # of the current version
    fault: str = ""  # why the current version cannot be served; else why the last deployment failed; else ""
    container: bool = False  # served by black-box containers, not from the repository
    contents: dict[str, str] = {}  # {version: digest}, of current and target, where the catalogue has one
    tries: int = 0  # how often operators have asked for a version; each time, what failed is tried again
    unserved: bool = False  # no device can prepare the current version
    fault_code: str = ""  # the kind of fault: PackageError's codes


class AppEntry(Message, frozen=True, kw_only=True):
    """One application: its definition, as the client sent it, and a revision that changes with it.

    `created`: its first revision; an application that is deleted and created again has another one.
    """

    name: str
    definition: dict[str, object]
    revision: int
    created: int = 0


class Table(Message, frozen=True, kw_only=True, tag="table"):
    """Broker -> everybody: the whole routing table."""

    epoch: int
    members: tuple[Member, ...]
    models: tuple[ModelEntry, ...]
    apps: tuple[AppEntry, ...] = ()
    shards: dict[str, int] = {}  # {controller id: its epoch}; actions carry it
    workers: dict[str, str] = {}  # {worker id: id of its controller}


# ---------------------------------------------------------------------------------------------------------------------
# any link


class Heartbeat(Message, frozen=True, kw_only=True, tag="beat"):
    """Either -> either: I am alive. Sent when nothing else was sent for a while."""


class Introduce(Message, frozen=True, kw_only=True, tag="intro"):
    """Listener -> caller: I do not know you (I may have restarted); send your Hello or Register again."""


class Goodbye(Message, frozen=True, kw_only=True, tag="bye"):
    """Either -> either: I am leaving on purpose; expect nothing more."""


# ---------------------------------------------------------------------------------------------------------------------
# broker


class Register(Message, frozen=True, kw_only=True, tag="register"):
    """Service -> broker: I am here, at these endpoints; send me the table now and after every change."""

    member: Member
    epoch: int = 0  # of a controller's shard, if an earlier life of the broker assigned one: the controller keeps it


class Deploy(Message, frozen=True, kw_only=True, tag="deploy"):
    """Operator -> broker: prepare this version (None: the newest in the repository) and make it current."""

    call: int
    name: str
    version: str | None


class Undeploy(Message, frozen=True, kw_only=True, tag="undeploy"):
    """Operator -> broker: refuse new requests for this model; free its memory when those in flight are done."""

    call: int
    name: str


class Rollback(Message, frozen=True, kw_only=True, tag="rollback"):
    """Operator -> broker: make the previously current version current again."""

    call: int
    name: str
    version: str | None = None  # the previous version as the operator last saw it: a repeated call goes no further back


class PutApp(Message, frozen=True, kw_only=True, tag="put_app"):
    """Frontend -> broker: create (`create`) or replace an application."""

    call: int
    definition: dict[str, object]
    create: bool


class DropApp(Message, frozen=True, kw_only=True, tag="drop_app"):
    """Frontend -> broker: delete an application."""

    call: int
    name: str


class ClaimVersion(Message, frozen=True, kw_only=True, tag="claim_version"):
    """Container or operator -> broker: which version is this code? The reply has its own number, the next free one, or
    none.
    """

    call: int
    name: str
    content: str  # digest of the code and of its declared inputs, outputs and labels
    version: str | None = None  # the number it must get; None: the broker chooses


class GetTable(Message, frozen=True, kw_only=True, tag="get_table"):
    """Operator -> broker: send me the table once."""

    call: int


class GetCatalogue(Message, frozen=True, kw_only=True, tag="get_catalogue"):
    """Operator -> broker: send me all that is known of models, and where packages are."""

    call: int


class KnownModel(Message, frozen=True, kw_only=True):
    """One model, deployed or not, with every version of it that was ever served."""

    name: str
    current: str | None
    previous: str | None  # version that a rollback makes current
    contents: dict[str, str]  # {version: digest under which it was first served}
    container: bool = False  # its versions come from containers, and no package can have its name


class CatalogueReply(Message, frozen=True, kw_only=True, tag="catalogue_reply"):
    """Broker -> operator: the answer to GetCatalogue."""

    call: int
    models: tuple[KnownModel, ...]
    repository: str  # folder of packages, as the broker's machine names it
    host: str  # the broker's host id, as in Member
    machine: str  # the broker's machine name, for people
    inode: int  # of the repository; 0: it does not exist (yet)


class CallReply(Message, frozen=True, kw_only=True, tag="call_reply"):
    """Broker -> operator, frontend or container: the outcome of a call, once it is in effect."""

    call: int
    ok: bool
    message: str
    faults: tuple[str, ...] = ()
    revision: int = 0
    field: str = ""
    code: str = ""  # why not, for programs: version_exists, unknown_app, ...; empty: no code of its own
    version: str = ""  # the claimed version


class PrepareReport(Message, frozen=True, kw_only=True, tag="prepare_report"):
    """Controller -> broker: a version is prepared on some device, or could not be prepared on any."""

    ref: str
    ok: bool
    spec: ModelSpec | None = None
    faults: tuple[str, ...] = ()
    content: str = ""  # digest of what was prepared; empty: the devices read no weights, or it is a container
    code: str = ""  # the kind of the faults
    ready: bool = True  # False: it can be served once the catalogue has recorded this content
    tries: int = 0  # tries in the table that this answers; 0: not known


# ---------------------------------------------------------------------------------------------------------------------
# frontend <-> controller


class FrontendHello(Message, frozen=True, kw_only=True, tag="frontend_hello"):
    """Frontend -> controller: I will submit requests; workers are to send outputs to `results`."""

    member: str
    host: str
    results: tuple[str, ...]


class Submit(Message, frozen=True, kw_only=True, tag="submit"):
    """Frontend -> controller: plan this request, or refuse it at once."""

    request: int  # the frontend's number of the request
    attempt: int  # 0; higher when submitted again
    ref: str
    rows: int
    budget_s: float  # seconds left when the envelope was sent
    weight: float = 1.0  # value of an answer in time, relative to other requests
    inline: tuple[memoryview, ...] = ()  # input tensors in the order of the spec, C order, little endian
    frames: int = 0  # or: how many frames of this message carry the input tensors


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Frontend -> controller: nobody waits for this request any more."""

    request: int


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """Controller -> frontend: this request will not be served (any more)."""

    request: int
    attempt: int
    status: str  # rejected | failed
    code: str
    message: str
    predicted_s: float | None = None  # predicted latency from arrival at the controller, if it was predicted
    retry_after_s: float | None = None


class Serving(Message, frozen=True, kw_only=True, tag="serving"):
    """Controller -> frontend: versions that some live worker has prepared."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reset: bool = False  # forget the versions named before
    controller: str = ""  # the sender: another controller may answer at an address by now


# ---------------------------------------------------------------------------------------------------------------------
# controller <-> worker. Instants are in the worker's clock.


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


class Forget(Message, frozen=True, kw_only=True, tag="forget"):
    """Controller -> worker: this version will not be asked for again; free all it holds."""

    ref: str


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


# ---------------------------------------------------------------------------------------------------------------------
# worker -> frontend


class Answer(Message, frozen=True, kw_only=True):
    """One request's part of a batch's outputs."""

    request: int
    attempt: int
    rows: int
    predicted_s: float
    inline: tuple[memoryview, ...] = ()  # output tensors in the order of the spec
    frames: int = 0
    cold: bool = False


class Outputs(Message, frozen=True, kw_only=True, tag="outputs"):
    """Worker -> frontend: all outputs of one batch that belong to this frontend."""

    ref: str
    device: str
    batch: int
    exec_s: float
    answers: tuple[Answer, ...]


# ---------------------------------------------------------------------------------------------------------------------
# operator <-> controller. An operator's id begins with "operator".


class AskSnapshot(Message, frozen=True, kw_only=True, tag="ask_snapshot"):
    """Operator -> controller: send me your present state."""

    call: int


class SnapshotReply(Message, frozen=True, kw_only=True, tag="snapshot"):
    """Controller -> operator: the answer to AskSnapshot."""

    call: int
    snapshot: Snapshot


class AskFacts(Message, frozen=True, kw_only=True, tag="ask_facts"):
    """Operator -> controller: what has ended since I last asked? The first of these starts the recording at once.

    Recording stops when the operator says so, is gone, or has not asked for a while.
    """

    call: int
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


# ---------------------------------------------------------------------------------------------------------------------
# one union per socket and direction

ToBroker = (
    Register
    | Heartbeat
    | Goodbye
    | Deploy
    | Undeploy
    | Rollback
    | PutApp
    | DropApp
    | ClaimVersion
    | GetTable
    | GetCatalogue
    | PrepareReport
)
FromBroker = Table | Heartbeat | Introduce | Goodbye | CallReply | CatalogueReply

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
FromControllerToFrontend = Refused | Serving | Heartbeat | Introduce | Goodbye
FromControllerToWorker = (
    Welcome | Frontends | Prepare | Forget | Load | Unload | Infer | Heartbeat | Introduce | Goodbye
)
FromControllerToOperator = SnapshotReply | FactsReply | Heartbeat | Introduce | Goodbye

ToResults = Outputs | Heartbeat
FromResults = Heartbeat | Introduce

M = TypeVar("M")


class Envelope(msgspec.Struct, Generic[M], frozen=True, array_like=True, gc=False):
    """All messages of one turn of a service for one peer."""

    sent_s: float  # sender's clock, just before the send
    delta_s: float | None  # smallest (receipt here - sent there) that the sender saw on this link: see clocks.py
    epoch: int  # shard epoch of a controller; 0 from other services
    messages: list[M]
