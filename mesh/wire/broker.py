"""The broker's socket: the routing table for everybody, reports of services, calls of operators and containers."""

from typing import Annotated

from msgspec import Meta

from mesh.wire.ranges import (
    Addresses,
    Code,
    Count,
    Digest,
    Duration,
    Id,
    NewRef,
    Number,
    Text,
    Texts,
)
from mesh.wire.shared import Goodbye, Heartbeat, Introduce, Message, ModelSpec


class Offer(Message, frozen=True, kw_only=True):
    """What a container's worker offers: one version of a model that is in no repository."""

    ref: NewRef
    spec: ModelSpec
    code: Digest  # the version's content: digest of its code, inputs, outputs and labels; equal for replicas


class ChildState(Message, frozen=True, kw_only=True):
    """How the code of a container is, which runs in a process of its own."""

    model: Id
    serves: bool  # False: it is being started, or will be
    for_s: Duration  # so long already, when this was sent
    starts: Count = 1  # of its process so far, this one included
    line: Text = ""  # what it printed last, while it is being started
    why: Text = ""  # how its last process ended; empty: none has


Endpoints = Annotated[dict[Id, Addresses], Meta(max_length=8)]


class Member(Message, frozen=True, kw_only=True):
    """One running service."""

    id: Id  # role and incarnation, "frontend-5f3a9c": a restarted service is a new member
    role: Id  # controller | gpu_worker | frontend | container: one whose code has not been imported yet
    host: Id  # boot id of its machine: members with the same one share memory and loopback
    endpoints: Endpoints = {}  # {"control" | "results" | "clients": addresses, preferred first}
    pid: Count = 0
    offer: Offer | None = None  # of a worker that is a container
    child: ChildState | None = None  # of a container
    key: Id = ""  # with which it has registered; set by the broker, whatever the member says


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

    epoch: Number
    members: tuple[Member, ...]
    models: tuple[ModelEntry, ...]
    apps: tuple[AppEntry, ...] = ()
    shards: dict[Id, Number] = {}  # {controller id: its epoch}; actions carry it
    workers: dict[Id, Id] = {}  # {worker id: id of its controller}


class Register(Message, frozen=True, kw_only=True, tag="register"):
    """Service -> broker: I am here, at these endpoints; send me the table now and after every change."""

    member: Member
    epoch: Number = 0  # of the shard: a controller's own, if it has been given one, which it keeps; a worker's newest
    seen: Number = 0  # the highest epoch that the member has seen: the broker goes on above it


Name = Annotated[str, Meta(max_length=4096)]  # as an operator typed it; the broker says what is wrong with it


class TableTaken(Message, frozen=True, kw_only=True, tag="table_taken"):
    """Frontend -> broker: I bind requests by the table of this epoch from now on."""

    epoch: Number


class Deploy(Message, frozen=True, kw_only=True, tag="deploy"):
    """Operator -> broker: prepare this version (None: the newest in the repository) and make it current."""

    call: Number
    name: Name
    version: Name | None


class Undeploy(Message, frozen=True, kw_only=True, tag="undeploy"):
    """Operator -> broker: refuse new requests for this model; free its memory when those in flight are done."""

    call: Number
    name: Name


class Rollback(Message, frozen=True, kw_only=True, tag="rollback"):
    """Operator -> broker: make the previously current version current again."""

    call: Number
    name: Name
    version: Name | None = (
        None  # the previous version as the operator last saw it: a repeated call goes no further back
    )


class PutApp(Message, frozen=True, kw_only=True, tag="put_app"):
    """Frontend -> broker: create (`create`) or replace an application."""

    call: Number
    definition: dict[str, object]
    create: bool


class DropApp(Message, frozen=True, kw_only=True, tag="drop_app"):
    """Frontend -> broker: delete an application."""

    call: Number
    name: Name


class ClaimVersion(Message, frozen=True, kw_only=True, tag="claim_version"):
    """Container or operator -> broker: which version is this code? The reply has its own number, the next free one, or
    none.
    """

    call: Number
    name: Name
    content: Digest  # digest of the code and of its declared inputs, outputs and labels
    version: Name | None = None  # the number it must get; None: the broker chooses


class GetTable(Message, frozen=True, kw_only=True, tag="get_table"):
    """Operator -> broker: send me the table once."""

    call: Number


class GetCatalogue(Message, frozen=True, kw_only=True, tag="get_catalogue"):
    """Operator -> broker: send me all that is known of models, and where packages are."""

    call: Number


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


class CallWaits(Message, frozen=True, kw_only=True, tag="call_waits"):
    """Broker -> operator: a call has no outcome yet. The answer to each heartbeat of an operator who waits."""

    call: int
    reason: str  # a WaitReason
    message: str


class PrepareReport(Message, frozen=True, kw_only=True, tag="prepare_report"):
    """Controller -> broker: a version is prepared on some device, or could not be prepared on any."""

    ref: NewRef
    ok: bool
    spec: ModelSpec | None = None
    faults: Texts = ()
    content: Digest = ""  # digest of what was prepared; empty: the devices read no weights, or it is a container
    code: Code = ""  # the kind of the faults
    ready: bool = True  # False: it can be served once the catalogue has recorded this content
    tries: Count = 0  # tries in the table that this answers; 0: not known


ToBroker = (
    Register
    | TableTaken
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
FromBroker = Table | Heartbeat | Introduce | Goodbye | CallReply | CatalogueReply | CallWaits
