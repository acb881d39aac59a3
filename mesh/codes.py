"""Every status and code that one part of the mesh tells another, or a client. Pure data; needs the standard library.

A member is its string: it compares, hashes and is encoded (by msgspec, msgpack and json) as that. Messages carry plain
strings, so that a code which a newer peer sends is no error; a receiver compares with members, never with sentences.

Each member has
    `http`     HTTP's status for it; None: that of the answer's status (`http_of`), or never told over HTTP
    `retry`    whether the same, asked again a little later, may end otherwise though nobody mends anything
    `meaning`  one line; `scripts/document_codes.py` writes the lists in the documents from it

`AnswerStatus.OK` costs 50 ns on Python 3.11: code that runs for each request binds the member to a module's constant.
"""

from enum import StrEnum
from typing import Self, cast


class Coded(StrEnum):
    """A string with what it means."""

    http: int | None
    retry: bool
    meaning: str

    def __new__(cls, value: str, *_: object) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        return member

    def __init__(self, value: str, http: int | None, retry: bool, meaning: str) -> None:
        self.http, self.retry, self.meaning = http, retry, meaning

    @classmethod
    def named(cls, value: str) -> Self | None:
        """The member that is this string; None if it is none, as what only a newer mesh knows is."""
        return cast("Self | None", cls._value2member_map_.get(value))


class AnswerStatus(Coded):
    """`status` of an answer to a client."""

    OK = "ok", 200, False, "served"
    REJECTED = "rejected", 429, True, (
        "refused before any work was done: the budget cannot be met, or there is no room"
    )  # fmt: skip
    TIMED_OUT = "timed_out", 504, True, "the deadline came first"
    FAILED = "failed", 500, False, (
        "something broke: the model raised, or its worker was lost and no other could take over"
    )  # fmt: skip
    INVALID = "invalid", 400, False, "the request cannot be obeyed"


class ErrorCode(Coded):
    """`error.code` of an answer that is not ok. `statuses`: the statuses that it comes with.

    An answer that `failed` may carry an ActionCode instead: what became of the last attempt to execute it.
    """

    statuses: tuple[AnswerStatus, ...]

    def __init__(self, value: str, http: int | None, retry: bool, meaning: str, *statuses: AnswerStatus) -> None:
        super().__init__(value, http, retry, meaning)
        self.statuses = statuses

    # the controller's, and the frontend's while a request is on its way
    DEADLINE = "deadline", None, False, (
        "rejected: the budget is too short even if the request ran next and alone, or has become so while it waited; "
        "timed_out: no answer came within it"
    ), AnswerStatus.REJECTED, AnswerStatus.TIMED_OUT  # fmt: skip
    OVERLOAD = "overload", None, True, (
        "behind what waits already it would come too late; or it was given up so that others are in time"
    ), AnswerStatus.REJECTED  # fmt: skip
    QUEUE_FULL = (
        "queue_full",
        None,
        True,
        "as many requests wait at the controller as it takes (`GEARMESH_QUEUE_MAX`)",
        AnswerStatus.REJECTED,
    )
    NOT_READY = "not_ready", 503, True, (
        "the version is still being prepared, or a container of the model is being started (the message says how that "
        "goes); or no device can prepare it (the message says why, and there is no `retry_after_ms`); or the frontend "
        "has just started, and the budget ended before it knew the models"
    ), AnswerStatus.REJECTED  # fmt: skip
    NO_WORKER = "no_worker", 503, True, "no worker is there", AnswerStatus.REJECTED
    NO_REPLICA = "no_replica", 503, True, (
        "a container's model, and none of its containers serves it at the moment; the message says why"
    ), AnswerStatus.REJECTED  # fmt: skip
    NOT_DEPLOYED = "not_deployed", 404, False, "the version was taken away while the request was on its way", (
        AnswerStatus.REJECTED
    )  # fmt: skip
    BATCH_FAILED = "batch_failed", None, True, (
        "failed: its batch failed, perhaps because of another request, and there was no time to try it apart; "
        "rejected: requests of its client have failed lately, and there was no time to execute it apart"
    ), AnswerStatus.FAILED, AnswerStatus.REJECTED  # fmt: skip
    QUARANTINED = "quarantined", None, True, (
        "requests of this client, or this very input, have ended the process that executed them: refused until "
        "`retry_after_ms` is over, longer each time"
    ), AnswerStatus.REJECTED  # fmt: skip
    WORKER_LOST = "worker_lost", None, True, "its worker died, and no other could take over", AnswerStatus.FAILED
    DEVICE_ERROR = "device_error", None, False, (
        "the model raised, or its device failed; the message is its own"
    ), AnswerStatus.FAILED  # fmt: skip
    MODEL_ERROR = "model_error", None, False, (
        "a container's function raised, or returned what does not fit; the message says what"
    ), AnswerStatus.FAILED  # fmt: skip
    ROWS_CHANGED = "rows_changed", None, False, (
        "a model gave another number of rows than it got: nobody gets a row of that batch"
    ), AnswerStatus.FAILED  # fmt: skip
    BAD_OUTPUTS = "bad_outputs", None, False, (
        "a model returned what does not fit its description; in an application, also numbers that are not finite"
    ), AnswerStatus.FAILED  # fmt: skip

    # the frontend's
    FRONTEND_FULL = "frontend_full", None, True, (
        "as many requests are open at the frontend as it takes (`GEARMESH_IN_FLIGHT_MAX`), or of this client as it "
        "takes of one (four times what is free)"
    ), AnswerStatus.REJECTED  # fmt: skip
    FRONTEND_BUSY = "frontend_busy", None, True, (
        "more comes than the frontend, or the controller, can take in: the request had waited too long when its turn "
        "came, or found no room to wait"
    ), AnswerStatus.REJECTED  # fmt: skip
    MEMORY_FULL = "memory_full", None, True, (
        "the inputs of the requests in flight at the frontend take `GEARMESH_IN_FLIGHT_MB`, or those of this client "
        "its share (four times what is free); come again after `retry_after_ms`, or spread the requests over more "
        "frontends"
    ), AnswerStatus.REJECTED  # fmt: skip
    STOPPING = "stopping", 503, True, "the frontend was stopped before the answer came", AnswerStatus.FAILED
    INTERNAL_ERROR = "internal_error", 500, False, (
        "the frontend itself failed while it looked at this message: please report it; its log has the traceback"
    ), AnswerStatus.FAILED  # fmt: skip
    CANCELLED = "cancelled", None, False, (
        "its client ended it: a `cancel`, or a closed connection, after which nobody is told"
    ), AnswerStatus.FAILED  # fmt: skip
    BAD_MESSAGE = "bad_message", None, False, (
        "a service of the mesh sent another one what is no message, or out of range; the message says what"
    ), AnswerStatus.FAILED  # fmt: skip
    MALFORMED = "malformed", None, False, "not msgpack, not a map, cut short, nested too deeply", AnswerStatus.INVALID
    JUNK = "junk", None, False, (
        "the connection has sent too many messages that cannot be read: it is closed, and what is open on it cancelled"
    ), AnswerStatus.INVALID  # fmt: skip
    BAD_OP = "bad_op", None, False, "`op` is missing or unknown", AnswerStatus.INVALID
    BAD_ID = "bad_id", None, False, "`id` is too long", AnswerStatus.INVALID
    BAD_FIELD = (
        "bad_field",
        None,
        False,
        "a field is missing, unknown, or not of its type; see `field`",
        AnswerStatus.INVALID,
    )
    BAD_TARGET = "bad_target", None, False, "not exactly one of `model` and `app`; see `field`", AnswerStatus.INVALID
    UNKNOWN_MODEL = "unknown_model", 404, False, "the message lists what there is, to 20 names", AnswerStatus.INVALID
    UNKNOWN_VERSION = "unknown_version", 404, False, "the message says which version is deployed", AnswerStatus.INVALID
    BAD_INPUTS = "bad_inputs", None, False, "not the names of the model's inputs", AnswerStatus.INVALID
    BAD_DTYPE = "bad_dtype", None, False, "not the dtype of the model's input", AnswerStatus.INVALID
    BAD_SHAPE = "bad_shape", None, False, (
        "not the shape of the model's input, an extent out of range, inputs that disagree, or too many rows"
    ), AnswerStatus.INVALID  # fmt: skip
    BAD_DATA = "bad_data", None, False, (
        "the bytes, numbers or strings do not fit dtype and shape, or strings are too many or too long"
    ), AnswerStatus.INVALID  # fmt: skip
    BAD_FRAMES = "bad_frames", None, False, "not one frame for each tensor", AnswerStatus.INVALID
    BAD_SLO = "bad_slo", None, False, "`slo_ms` is out of range", AnswerStatus.INVALID
    BAD_WEIGHT = "bad_weight", None, False, "`weight` is out of range", AnswerStatus.INVALID
    DUPLICATE_ID = "duplicate_id", None, False, (
        "the id is in flight on this connection; the first request goes on"
    ), AnswerStatus.INVALID  # fmt: skip

    # of applications
    UNKNOWN_APP = "unknown_app", 404, False, "there is no application of this name", AnswerStatus.INVALID
    APP_EXISTS = "app_exists", None, False, "an application of this name is there already", AnswerStatus.INVALID
    BAD_APP = "bad_app", None, False, "an application's definition; see `field`", AnswerStatus.INVALID
    BAD_POLICY = "bad_policy", None, False, "an application's policy, or its arguments", AnswerStatus.INVALID
    MODELS_DIFFER = "models_differ", None, False, (
        "the models of an application do not take the same inputs, or do not give the same outputs"
    ), AnswerStatus.INVALID, AnswerStatus.FAILED  # fmt: skip
    BAD_CONTEXT = "bad_context", None, False, "the context key", AnswerStatus.INVALID
    BAD_FEEDBACK = "bad_feedback", None, False, "the label or the loss", AnswerStatus.INVALID
    LOW_CONFIDENCE = "low_confidence", None, False, (
        "the confidence is below the application's least, and it has no default"
    ), AnswerStatus.FAILED  # fmt: skip
    POLICY_ERROR = "policy_error", None, False, (
        "a policy of the operator's own raised, or gave what no model would"
    ), AnswerStatus.FAILED  # fmt: skip
    NOT_SERVED = "not_served", None, False, (
        "the application is defined, and cannot be in effect at this frontend; the message says why"
    ), AnswerStatus.FAILED  # fmt: skip
    BUSY = (
        "busy",
        None,
        True,
        "more feedback, or changes of applications, than can be taken in now",
        AnswerStatus.REJECTED,
    )
    NO_BROKER = "no_broker", 503, True, (
        "applications, and what is deployed, can only be changed while the broker is there"
    ), AnswerStatus.REJECTED, AnswerStatus.TIMED_OUT  # fmt: skip
    NOT_SAVED = "not_saved", None, False, (
        "the change of an application is in effect, but not on disk: a broker started again will not know it"
    ), AnswerStatus.FAILED  # fmt: skip

    # the Python clients' own
    CLIENT_FULL = "client_full", None, True, "as many requests wait in this client as it keeps", AnswerStatus.REJECTED
    NO_ANSWER = "no_answer", None, True, "nobody answered, a second beyond the budget", AnswerStatus.TIMED_OUT
    CLOSED = "closed", 503, False, "the client was closed meanwhile", AnswerStatus.FAILED
    BAD_ANSWER = "bad_answer", None, False, "what came is no answer", AnswerStatus.FAILED
    TOO_LARGE = "too_large", 413, False, (
        "a tensor, or over HTTP the body, is larger than a frontend takes (`GEARMESH_REQUEST_BYTES_MAX`)"
    ), AnswerStatus.INVALID  # fmt: skip
    UNNAMED = (
        "unknown",
        None,
        False,
        "the answer names no code, or one that only a newer mesh knows",
        AnswerStatus.FAILED,
    )


CLIENTS_OWN = (
    ErrorCode.CLIENT_FULL, ErrorCode.NO_ANSWER, ErrorCode.CLOSED, ErrorCode.BAD_ANSWER, ErrorCode.TOO_LARGE,
    ErrorCode.UNNAMED,
)  # no frontend sends these  # fmt: skip


class HttpCode(Coded):
    """`code` of a refusal by the HTTP gateway itself, besides ErrorCode."""

    BAD_REQUEST = "bad_request", 400, False, "HTTP that is not as it should be"
    NOT_LOADED = "not_loaded", 400, False, "a model could not be loaded or unloaded, and the broker names no code"
    FOREIGN_ORIGIN = "foreign_origin", 403, False, "a browser's page from another host asks"
    NO_SUCH_PATH = "no_such_path", 404, False, "nothing is at this path"
    BAD_METHOD = "bad_method", 405, False, "this path is not for this method"
    BAD_ENCODING = "bad_encoding", 415, False, "the body's `Content-Encoding` is not gzip, deflate or none"
    SLOW_BODY = "slow_body", 408, True, "the body did not come within 60 s"
    GATEWAY_FULL = "gateway_full", 429, True, "as many requests, or bytes, are in the gateway as it takes"
    NO_FRONTEND = "no_frontend", 503, True, "no frontend answers"


class ReplyCode(Coded):
    """`code` of the broker's reply to an operator, a frontend or a container, besides PackageCode. Empty: it is ok."""

    UNKNOWN_MODEL = "unknown_model", 404, False, "there is no package of this name in the repository"
    UNKNOWN_VERSION = "unknown_version", 404, False, "the model has no such version"
    NO_VERSION = "no_version", 404, False, "the package has no folder named by a number"
    NO_REPLICA = "no_replica", 404, False, "no container of this model, or of this version, is running"
    NOT_DEPLOYED = "not_deployed", 404, False, "the model is not deployed"
    NO_PREVIOUS = "no_previous", 404, False, "no version was current before this one"
    PREVIOUS_CHANGED = "previous_changed", 409, False, "another version is the previous one by now"
    IN_USE = "in_use", 409, False, "applications ask the model"
    BAD_MESSAGE = "bad_message", 400, False, "the call is no message of the mesh, or a field of it is out of range"
    BAD_MEMBER = "bad_member", 400, False, (
        "a service cannot register as it says it is: its id, role, addresses, or what it offers"
    )  # fmt: skip
    BAD_NAME = "bad_name", 400, False, "no model or version can have this name"
    REPLICAS_DIFFER = "replicas_differ", 400, False, (
        "replicas of this version are there with another `--batch-max`, `--slo-ms` or `--cache`"
    )  # fmt: skip
    SUPERSEDED = "superseded", 400, False, "another deployment took over while this one was waited for"
    UNDEPLOYED = "undeployed", 400, False, "the model was undeployed while a deployment was waited for"
    NOT_SAVED = "not_saved", 400, True, "it is in effect, but not on disk: a broker started again will not know it"
    UNKNOWN_APP = "unknown_app", 404, False, "there is no application of this name"
    APP_EXISTS = "app_exists", 400, False, "an application of this name is there already"
    BAD_APP = "bad_app", 400, False, "an application's name, or its models"
    BAD_ADDRESS = "bad_address", 400, False, "where a member says that it listens cannot be called"
    NO_ROLE = "no_role", 403, False, "the caller's key lacks the role"


class PackageCode(Coded):
    """Why a package, or what was to become one, is refused: `code` of PackageError, of preparations and of replies."""

    BAD_ARGUMENT = "bad_argument", 400, False, "an argument of the import is none"
    BAD_INPUTS = "bad_inputs", 400, False, "the inputs that were named do not fit the model: names, dtypes, shapes"
    BAD_NAMES = "bad_names", 400, False, "the names of outputs, or of labels, do not fit the model"
    BAD_EXAMPLE = "bad_example", 400, False, "`example` does not fit the inputs"
    BAD_MODULE = "bad_module", 400, False, "no module, one that cannot be copied, or one whose tensors cannot be stored"
    NO_WEIGHTS = "no_weights", 400, False, "tensors of the module have no shape yet, or no values"
    SCRIPTED = "scripted", 400, False, "TorchScript: give the module it was made from, an ONNX file, or a container"
    QUANTISED = "quantised", 400, False, (
        "weights quantised in a form of their own: give the module it was made from, an ONNX file, or a container"
    )  # fmt: skip
    FORWARD_FAILED = "forward_failed", 400, False, "it fails on the inputs that were tried: give `example`"
    DATA_DEPENDENT = "data_dependent", 400, False, (
        "`forward` decides by the values of a tensor: use `torch.where`, or a container"
    )  # fmt: skip
    BATCH_FIXED = "batch_fixed", 400, False, (
        "it holds for some numbers of rows only. A batch put together of several may be cut again by `chunk`, `split`, "
        "`unflatten(0, (2, -1))` or slices up to `x.shape[0]`"
    )  # fmt: skip
    EXTENTS_FIXED = "extents_fixed", 400, False, (
        "it holds for some extents of its open dimensions only: give `dims` a smaller range, or mend `forward`"
    )  # fmt: skip
    NOT_EXPORTABLE = "not_exportable", 400, False, "torch.export cannot follow `forward` for another reason"
    ROWS_CHANGED = "rows_changed", 400, False, "it gives another number of rows than it gets"
    ROWS_MIXED = "rows_mixed", 400, False, "a row's answer depends on the other rows of its batch"
    PADDING_MATTERS = "padding_matters", 400, False, (
        "a row's answer depends on what it is filled up with: use a mask, or give `pad`, or `exact=True`"
    )  # fmt: skip
    RANDOM = "random", 400, False, "it gives other answers to equal inputs"
    STATE_CHANGED = "state_changed", 400, False, "a call changes the model"
    BAD_OUTPUTS = "bad_outputs", 400, False, (
        "an output that cannot travel: complex, sparse, no tensor; or another than was promised"
    )  # fmt: skip
    NOT_EQUAL = "not_equal", 400, False, "the graph does not give what the module gives"
    BAD_SOURCE = "bad_source", 400, False, "there is nothing that can be imported"
    NOT_ONNX = "not_onnx", 400, False, "nothing that onnxruntime can load"
    VERSION_EXISTS = "version_exists", 400, False, (
        "a version of this number is there, or was served, and is another one"
    )  # fmt: skip
    NAME_TAKEN = "name_taken", 404, False, (
        "a package has the name of a container, or a container that of a package: give it another one"
    )  # fmt: skip
    NOT_WRITTEN = "not_written", 400, False, "a folder that cannot be written, or is not seen from this machine"
    CONTENT_CHANGED = "content_changed", 400, False, "the files are not those that were served under this number"
    DEVICE_ERROR = "device_error", 400, False, (
        "it was prepared, and then failed three times in a row where it was measured, or its weights could not be "
        "loaded: the message is the device's. Mend that and deploy it again, or deploy another version"
    )  # fmt: skip
    DEVICE_LOST = "device_lost", 400, True, "the device failed while it was prepared there"
    NO_MEMORY = "no_memory", 400, False, (
        "one row of the greatest extents does not fit in the device's memory; the message says what does. Write the "
        "version with smaller ones, or allow batches more memory (`GEARMESH_BATCH_MEMORY_MB`)"
    )  # fmt: skip
    ENDED_WORKER = "ended_worker", 400, False, "preparing it ended the worker twice"
    UNSAFE_PACKAGE = "unsafe_package", 400, False, (
        "a package holds what could run code, or harm whoever reads it: a pickle, an operation that no graph may call, "
        "a link, a pipe, a file of a size that is not read"
    )  # fmt: skip
    BAD_PACKAGE = "bad_package", 400, False, "files of a package are missing, damaged, or do not fit each other"


class WaitReason(StrEnum):
    """`reason` of CallWaits: what a deployment waits for."""

    NO_CONTROLLER = "no_controller"  # nobody could have the version prepared
    NO_WORKER = "no_worker"  # nobody could prepare it
    PREPARING = "preparing"


class ActionKind(StrEnum):
    """`kind` of an action, and of its result."""

    LOAD = "load"
    UNLOAD = "unload"
    INFER = "infer"


APART = "the requests of its batch are tried apart; one that was alone has `failed`, with the message"
PREPARED_AGAIN = "the version is prepared there again; meanwhile planned elsewhere, or after that, at most 3 times"
ALONE = "each of its requests is tried once more, alone"


class ActionCode(Coded):
    """`code` of an action's result; `follows`: what the controller does. `retry`: it plans the requests again.

    Of a LOAD or an INFER; a controller writes `lost` and `worker_lost` itself.
    """

    follows: str

    def __init__(self, value: str, retry: bool, meaning: str, follows: str) -> None:
        super().__init__(value, None, retry, meaning)
        self.follows = follows

    OK = "ok", False, "done", ""
    LATE = "late", True, "its window had passed before it could start", (
        "planned again while there is time, at most 3 times"
    )  # fmt: skip
    UNKNOWN_MODEL = "unknown_model", True, "the model is not prepared here", PREPARED_AGAIN
    WRONG_VERSION = "wrong_version", True, (
        "another version of the model is prepared here, not this one"
    ), PREPARED_AGAIN  # fmt: skip
    WEIGHTS_MISSING = "weights_missing", True, (
        "the weights are not in the arena, and no LOAD of them is on its way"
    ), "they are loaded again"  # fmt: skip
    ALREADY_LOADED = "already_loaded", True, "the weights are in the arena already, or on their way", "served"
    NO_PAGES = "no_pages", True, "not enough free pages", "of a LOAD: tried again with growing pauses"
    BAD_BATCH = "bad_batch", False, "the device cannot execute this batch size", APART
    BAD_INPUT = "bad_input", False, "the inputs do not fit the model", APART
    NO_MEMORY = "no_memory", False, "the batch does not fit in the device's memory", APART
    INPUTS_MISSING = "inputs_missing", True, (
        "the inputs, which frontends keep, could not be read, or did not come in time"
    ), "planned again, at most 3 times"  # fmt: skip
    NO_SLOTS = "no_slots", True, "no free buffer for inputs", "planned again, at most 3 times"
    STALE_EPOCH = "stale_epoch", True, "ordered by a controller that has been replaced", "dropped"
    OVERFULL = "overfull", True, "too many actions wait at this device", "planned again, at most 3 times"
    ROWS_CHANGED = "rows_changed", False, "the model gave another number of rows than it got", APART
    BAD_OUTPUTS = "bad_outputs", False, "the model gave outputs that are not those it promised", APART
    CONTENT_CHANGED = "content_changed", False, (
        "the weights on disk are not, or not any more, those of the version"
    ), (
        "of a LOAD: the worker withdraws the version; requests are `rejected`, `not_ready`, with the reason, unless "
        "another device serves it"
    )  # fmt: skip
    DEVICE_ERROR = "device_error", False, "the device failed", (
        f"of an INFER: {APART}; of a LOAD: tried again with growing pauses, and after "
        "five in a row the version is not served from that device, with the message as the reason; it is prepared "
        "again after 5 s, later each time, or when an operator deploys it"
    )  # fmt: skip
    MODEL_ERROR = "model_error", False, (
        "a container's code raised an exception, or returned what it must not"
    ), APART  # fmt: skip
    CONTAINER_DIED = "container_died", True, (
        "a container's code died or hung while it executed this batch; it is being started again"
    ), ALONE  # fmt: skip
    RESTARTING = "restarting", True, (
        "a container's code is being started again, and did not get this batch"
    ), "planned again, at most 3 times"  # fmt: skip
    REVOKED = "revoked", True, (
        "its controller took it back before EXEC began, because nobody waits for its requests any more"
    ), "counted as `revoked`, and not as a failure"  # fmt: skip
    DEVICE_LOST = "device_lost", True, (
        "the device failed for good, or hung, while it had this batch; its worker ends"
    ), f"of the batch that ran: {ALONE}; of others: planned elsewhere"  # fmt: skip
    LOST = "lost", True, "no result came in time, though the worker is alive", (
        f"of the batch that ran: {ALONE}; of others: planned again, at most 3 times"
    )  # fmt: skip
    WORKER_LOST = "worker_lost", True, "its worker is gone", (
        f"of the batch that ran, unless the worker had said goodbye: {ALONE}; of others: planned elsewhere"
    )  # fmt: skip


class FeedbackReason(Coded):
    """`reason` in an answer to `feedback` that was not applied."""

    DUPLICATE = "duplicate", 200, False, "feedback for this decision was given already"
    LATE = "late", 200, False, "the decision is older than decisions are kept"
    UNKNOWN = "unknown", 200, False, "no answer carried this decision, or nobody knows of it any more"
    UNKNOWN_APP = "unknown_app", 200, False, "the application is gone, or another one by now"
    NOTHING_TO_LEARN = "nothing_to_learn", 200, False, "no model answered"
    STORE_DOWN = "store_down", 200, True, "it is kept, and taken in when the store is back; or the message says: again"
    NOT_LEARNED = "not_learned", 200, False, "the policy, or the store, did not take it"


class RequestOutcome(Coded):
    """How a request ended for its client, in the controller's log and counts."""

    IN_TIME = "in_time", None, False, "answered within its deadline"
    LATE = "late", None, True, "answered after it"
    TIMED_OUT = "timed_out", None, True, "its frontend gave it up at its deadline, and told the client so"
    REJECTED = "rejected", None, True, "refused, at arrival or while it waited, with a `code`"
    FAILED = "failed", None, False, "something broke, with a `code`"
    CANCELLED = "cancelled", None, False, "its client cancelled it, or is gone"
    WITHDRAWN = "withdrawn", None, False, (
        "a part of a larger request that is over, as another part was refused: that one's line says why"
    )  # fmt: skip
    FRONTEND_LOST = "frontend_lost", None, False, "its frontend is gone"


class LinkLoss(StrEnum):
    """Why a link is over, as logs tell it (`why`)."""

    SILENT = "was silent for too long"
    CLOSED = "closed the connection"
    KEY_REFUSED = "refused our key"
    OTHER_KEYS = "ended the handshake: it has other keys, or none"
    NOT_ITS_KEY = "speaks for a member whose key it has not"
    LEFT = "left"  # it said Goodbye
    GONE = "is gone"  # from the routing table
    REPLACED = "was replaced"  # another one answers at its address
    SUPERSEDED = "has opened a newer link"
    UNUSABLE = "has no address that can be called"
    GARBAGE = "sends what cannot be understood"


class LinkRefusal(StrEnum):
    """Why a port does not hear a link, as its log tells it (`error`)."""

    CALLS_ANOTHER = "it calls somebody else"
    NOT_ITS_KEY = "it speaks for a member whose key it has not"
    OLDER = "its member has opened a newer link"


class IdentityRefusal(StrEnum):
    """Why a frontend closes a client's connection of which nothing comes through, as its log tells it (`why`)."""

    IN_USE = "another connection has its ROUTING_ID"
    FREE_AGAIN = "another connection had its ROUTING_ID when it came; it is given up now"
    KEY_REVOKED = "its key may not call any more"
    RESERVED = "its ROUTING_ID has 5 bytes, of which the first is 0: ZeroMQ itself gives such names"
    OLD_PROTOCOL = "it speaks ZMTP 1 or 2, or something that reads like it: messages in ZMTP 3 are read here"


_STATUSES: dict[str, int | None] = {status: status.http for status in AnswerStatus}
_ERRORS: dict[str, int | None] = {code: code.http for code in ErrorCode}
_REPLIES: dict[str, int | None] = {code: code.http for group in (PackageCode, ReplyCode) for code in group}


def http_of(status: str, code: str) -> int:
    """HTTP's status of an answer: the code's own, else the status's; 500 for what only a newer mesh knows."""
    return _ERRORS.get(code) or _STATUSES.get(status) or 500


def http_of_reply(code: str) -> int:
    """HTTP's status of a reply of the broker that is not ok; 400 for what only a newer broker knows."""
    return _REPLIES.get(code) or 400
