"""Every message between services: frozen structs, one union per socket.

A message on the wire is one msgpack array, an `Envelope`, holding whatever its sender had for that peer in one turn of
its loop; tensors too large to ride inside follow as frames of their own, in the order of the messages that own them.
Fields are positional: new ones are appended with a default, none is ever retyped or removed.

A *ref* names one version of one model: ``"resnet18:1"``.
"""

from typing import Generic, TypeVar

import msgspec

from mesh.facts import Fact, Snapshot

Buffer = bytes | memoryview  # a tensor's bytes, in a frame of their own
INLINE_BYTES_MAX = 32 * 1024  # larger tensors travel as frames of their own: they are then never copied by the codec


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
    """What a client may send to one version of a model, and what comes back."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_max: int  # rows in the largest batch
    slo_ms: float  # budget of a request that names none
    cacheable: bool = True
    labels: tuple[str, ...] = ()  # names of the classes of the first output, or nothing
    batch_sizes: tuple[int, ...] = ()  # sizes that were profiled
    build: str = ""  # of a container's version: changes when its code may have, so older answers do not count

    def edition(self, ref: str) -> str:
        """Names the version together with its build: answers may be reused while this is equal."""
        return f"{ref}#{self.build}" if self.build else ref


class Batching(Message, frozen=True, kw_only=True):
    """How the batches of a black-box container are sized."""

    method: str = "aimd"  # aimd | quantile | fixed | none
    objective_s: float = 0.05  # EXEC of a batch is to take no longer
    size: int = 1  # of `fixed`: the largest batch
    wait_s: float = 0.0  # a batch that is not full may wait so long for requests that are expected


class Profile(Message, frozen=True, kw_only=True):
    """How long one version of a model takes on one kind of device, measured there (seconds)."""

    exec_s: dict[int, float]  # {batch: median EXEC duration}
    load_s: float  # median LOAD duration
    exec_p99_s: dict[int, float] = {}
    engine: str = ""  # how it was executed: "eager", "compiled", ...
    load_from: str = "host"  # where that LOAD found the weights: "host" memory or "disk"


class Offer(Message, frozen=True, kw_only=True):
    """What a container's worker brings: one version of a model that lies in no repository."""

    ref: str
    spec: ModelSpec
    code: str  # the version's content: digest of its code, inputs, outputs and labels; equal for replicas


class Member(Message, frozen=True, kw_only=True):
    """One running service."""

    id: str  # role and incarnation, "frontend-5f3a9c": a restarted service is a new member
    role: str  # controller | gpu_worker | frontend
    host: str  # same host: same boot id, so shared memory and loopback work between them
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
    fault: str = ""  # why the current version cannot be served, or else why the last deployment failed, if it did
    container: bool = False  # served by black-box containers, not from the repository
    contents: dict[str, str] = {}  # {version: digest}, of current and target, where the catalogue has one
    tries: int = 0  # how often operators have asked for a version: with each, what failed is tried again
    unserved: bool = False  # no device can prepare the current version
    fault_code: str = ""  # of which kind the fault is: PackageError's codes


class AppEntry(Message, frozen=True, kw_only=True):
    """One application: its definition, as the client sent it, and a revision that changes with it.

    `created`: its first revision; an application that was deleted and made again has another one.
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
    """Either -> either: I am here. Sent when nothing else was for a while."""


class Introduce(Message, frozen=True, kw_only=True, tag="intro"):
    """Listener -> caller: I do not know you (I may be new); say your Hello or Register again."""


class Goodbye(Message, frozen=True, kw_only=True, tag="bye"):
    """Either -> either: I leave on purpose; expect nothing more."""


# ---------------------------------------------------------------------------------------------------------------------
# broker


class Register(Message, frozen=True, kw_only=True, tag="register"):
    """Service -> broker: I am here, at these endpoints; send me the table now and whenever it changes."""

    member: Member
    epoch: int = 0  # of a controller's shard, if an earlier life of the broker gave it one: it keeps it


class Deploy(Message, frozen=True, kw_only=True, tag="deploy"):
    """Operator -> broker: prepare this version (the newest in the repository if None) and make it current."""

    call: int
    name: str
    version: str | None


class Undeploy(Message, frozen=True, kw_only=True, tag="undeploy"):
    """Operator -> broker: take no new requests for this model; free its memory when those in flight are done."""

    call: int
    name: str


class Rollback(Message, frozen=True, kw_only=True, tag="rollback"):
    """Operator -> broker: make the version that was current before this one current again."""

    call: int
    name: str
    version: str | None = None  # which that is, as far as the operator knows: asked again, it goes no further back


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
    """Container or operator -> broker: which version is this code? Its own, the next that is free, or none: refused."""

    call: int
    name: str
    content: str  # digest of the code and of what is declared
    version: str | None = None  # it is to be this one


class GetTable(Message, frozen=True, kw_only=True, tag="get_table"):
    """Operator -> broker: the table, once."""

    call: int


class GetCatalogue(Message, frozen=True, kw_only=True, tag="get_catalogue"):
    """Operator -> broker: all that is known of models, and where packages lie."""

    call: int


class KnownModel(Message, frozen=True, kw_only=True):
    """One model, deployed or not, with all that was ever served of it."""

    name: str
    current: str | None
    previous: str | None  # what a rollback makes current
    contents: dict[str, str]  # {version: digest under which it was first served}
    container: bool = False  # it is what containers bring, and no package can have its name


class CatalogueReply(Message, frozen=True, kw_only=True, tag="catalogue_reply"):
    """Broker -> operator: this."""

    call: int
    models: tuple[KnownModel, ...]
    repository: str  # folder of packages, as the broker's machine names it
    host: str  # the broker's, as a member's
    machine: str  # the same, for people
    inode: int  # of the repository; 0: it is not there (yet)


class CallReply(Message, frozen=True, kw_only=True, tag="call_reply"):
    """Broker -> operator, frontend or container: the outcome of a call, once it is in effect."""

    call: int
    ok: bool
    message: str
    faults: tuple[str, ...] = ()
    revision: int = 0
    field: str = ""
    code: str = ""  # why not, for programs: version_exists, unknown_app, ...; empty: no code of its own
    version: str = ""  # that was claimed


class PrepareReport(Message, frozen=True, kw_only=True, tag="prepare_report"):
    """Controller -> broker: a version is prepared on some device, or could not be on any."""

    ref: str
    ok: bool
    spec: ModelSpec | None = None
    faults: tuple[str, ...] = ()
    content: str = ""  # digest of what was prepared; empty: of devices that read no weights, or of a container
    code: str = ""  # of which kind the faults are
    ready: bool = True  # False: it can be served once the catalogue has this content
    tries: int = 0  # of the table that this answers; 0: not known


# ---------------------------------------------------------------------------------------------------------------------
# frontend <-> controller


class FrontendHello(Message, frozen=True, kw_only=True, tag="frontend_hello"):
    """Frontend -> controller: I will submit requests; workers send outputs to `results`."""

    member: str
    host: str
    results: tuple[str, ...]


class Submit(Message, frozen=True, kw_only=True, tag="submit"):
    """Frontend -> controller: plan this request, or refuse it at once."""

    request: int  # the frontend's counter
    attempt: int  # 0, or more when submitted again
    ref: str
    rows: int
    budget_s: float  # left when the envelope was sent
    weight: float = 1.0  # value of an answer in time, relative to others
    inline: tuple[memoryview, ...] = ()  # input tensors in the order of the spec, C order, little endian
    frames: int = 0  # or: how many frames of this message carry them


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
    predicted_s: float | None = None  # predicted latency from arrival at the controller, where there is one
    retry_after_s: float | None = None


class Serving(Message, frozen=True, kw_only=True, tag="serving"):
    """Controller -> frontend: versions that some live worker has prepared."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reset: bool = False  # forget what was said before
    controller: str = ""  # who says so: another one may answer at an address by now


# ---------------------------------------------------------------------------------------------------------------------
# controller <-> worker. Instants are in the worker's clock.


class DeviceInfo(Message, frozen=True, kw_only=True):
    """What a worker drives."""

    name: str  # "cpu:0", "cuda:0", "emulated:h100/3"
    kind: str  # key of its profiles: equal kinds take equal time
    pages: int
    page_bytes: int
    any_batch: bool  # any size up to the maximum, not only profiled ones
    memory_note: str = ""
    container: str = ""  # ref of the one version that it serves and always has resident; empty: any


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """Worker -> controller: a version is prepared here (`ok`), or why it cannot be."""

    ref: str
    ok: bool
    faults: tuple[str, ...] = ()
    spec: ModelSpec | None = None
    pages: int = 0
    weights_bytes: int = 0
    profile: Profile | None = None  # None: not measured here yet
    measure: tuple[tuple[int, int], ...] = ()  # (batch, runs) to be measured; empty once the profile is there
    batching: Batching | None = None  # of a container: its times are learned from real requests, not measured
    content: str = ""  # digest of what was read; empty where no weights are read
    code: str = ""  # of which kind the faults are


class WorkerHello(Message, frozen=True, kw_only=True, tag="worker_hello"):
    """Worker -> controller: what I am and what I hold."""

    member: str
    host: str
    device: DeviceInfo
    free_pages: int
    resident: tuple[str, ...]  # refs whose weights are in the arena
    prepared: tuple[Prepared, ...]


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Controller -> worker: you are mine from now on, at the epoch of this envelope; drop what older ones ordered."""

    controller: str = ""  # who says so: another one may answer at an address by now


class Frontends(Message, frozen=True, kw_only=True, tag="frontends"):
    """Controller -> worker: all frontends that may be named in an INFER, and where they take outputs."""

    results: dict[str, tuple[str, ...]]  # {member id: addresses}


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Controller -> worker: read and validate this version, pin its weights, make it executable."""

    ref: str
    content: str = ""  # digest that it has to have; empty: nobody has served it yet


class Forget(Message, frozen=True, kw_only=True, tag="forget"):
    """Controller -> worker: this version will not be asked for again; free all it holds."""

    ref: str


class Load(Message, frozen=True, kw_only=True, tag="load"):
    """Controller -> worker: copy the weights into free pages, starting inside the window."""

    action: int
    ref: str
    earliest_s: float
    latest_s: float
    expected_s: float


class Unload(Message, frozen=True, kw_only=True, tag="unload"):
    """Controller -> worker: give the pages of this version back, at once."""

    action: int
    ref: str


class Part(Message, frozen=True, kw_only=True):
    """One request's share of a batch."""

    frontend: str
    request: int
    attempt: int
    rows: int
    predicted_s: float  # latency that admission predicted, for the answer
    inline: tuple[memoryview, ...] = ()
    frames: int = 0
    cold: bool = False  # the model was on no device when the request arrived; for the answer


class Infer(Message, frozen=True, kw_only=True, tag="infer"):
    """Controller -> worker: INPUT, EXEC (starting inside the window), OUTPUT. Without parts: a measuring run."""

    action: int
    ref: str
    earliest_s: float
    latest_s: float
    expected_s: float
    batch: int  # rows that EXEC computes: the sum over the parts, padded up where the device needs it
    parts: tuple[Part, ...] = ()
    overdue_s: float = 0.0  # of a container: not ended by then, its code hangs; 0: no such limit
    cold_s: float = 0.0  # ... or so much later, while no batch has ended well in the process of its code


class ActionResult(Message, frozen=True, kw_only=True, tag="result"):
    """Worker -> controller: what became of an action. Instants in the worker's clock, None where not reached."""

    action: int
    kind: str  # load | unload | infer
    code: str  # "ok", or one of gpu_worker.core.lanes.CODES
    received_s: float
    free_pages: int
    message: str = ""
    begin_s: float | None = None  # start of the copy (LOAD) or of EXEC
    end_s: float | None = None
    duration_s: float | None = None  # as the device measured it
    input_s: float | None = None  # duration of INPUT
    output_s: float | None = None  # duration of OUTPUT
    gathered: bool = False  # EXEC had to bring the weights into its window first
    clock_mhz: float = 0.0  # SM clock, 0 where unknown


# ---------------------------------------------------------------------------------------------------------------------
# worker -> frontend


class Answer(Message, frozen=True, kw_only=True):
    """One request's share of a batch's outputs."""

    request: int
    attempt: int
    rows: int
    predicted_s: float
    inline: tuple[memoryview, ...] = ()  # output tensors in the order of the spec
    frames: int = 0
    cold: bool = False


class Outputs(Message, frozen=True, kw_only=True, tag="outputs"):
    """Worker -> frontend: outputs of one batch, all that belongs to this frontend."""

    ref: str
    device: str
    batch: int
    exec_s: float
    answers: tuple[Answer, ...]


# ---------------------------------------------------------------------------------------------------------------------
# operator <-> controller. An operator's id begins with "operator".


class AskSnapshot(Message, frozen=True, kw_only=True, tag="ask_snapshot"):
    """Operator -> controller: how are you?"""

    call: int


class SnapshotReply(Message, frozen=True, kw_only=True, tag="snapshot"):
    """Controller -> operator: so."""

    call: int
    snapshot: Snapshot


class AskFacts(Message, frozen=True, kw_only=True, tag="ask_facts"):
    """Operator -> controller: what has ended since I last asked? The first one starts the recording, at once.

    It stops when asked to, when the operator is gone, or when it has not asked for a while.
    """

    call: int
    stop: bool = False


class FactsReply(Message, frozen=True, kw_only=True, tag="facts"):
    """Controller -> operator: this; `more` of it is left, and `dropped` facts since the last reply found no room."""

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
    """All that one turn of a service had for one peer."""

    sent_s: float  # sender's clock, just before the send
    delta_s: float | None  # smallest (receipt here - sent there) the sender saw on this link: see clocks.py
    epoch: int  # shard epoch of a controller; 0 from anybody else
    messages: list[M]
