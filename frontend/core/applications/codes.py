"""The codes that applications put into answers, as a program reads them. This is the only place that spells them."""

# statuses of an answer
OK = "ok"
REJECTED = "rejected"
TIMED_OUT = "timed_out"
FAILED = "failed"
INVALID = "invalid"

# why a request gets no answer from a model, or none at all
BAD_APP = "bad_app"
BAD_CONTEXT = "bad_context"
BAD_FEEDBACK = "bad_feedback"
BAD_OUTPUTS = "bad_outputs"
BAD_POLICY = "bad_policy"
BAD_TARGET = "bad_target"
APP_EXISTS = "app_exists"
BUSY = "busy"
DEADLINE = "deadline"
LOW_CONFIDENCE = "low_confidence"
MODELS_DIFFER = "models_differ"
NO_BROKER = "no_broker"
NOT_READY = "not_ready"
NOT_SERVED = "not_served"
POLICY_ERROR = "policy_error"
STOPPING = "stopping"
UNKNOWN_APP = "unknown_app"
UNKNOWN_MODEL = "unknown_model"

# why feedback was not applied (UNKNOWN_APP is one of these, too)
DUPLICATE = "duplicate"
LATE = "late"
NOT_LEARNED = "not_learned"
NOTHING_TO_LEARN = "nothing_to_learn"
STORE_DOWN = "store_down"
UNKNOWN = "unknown"

# what became of an order to the store
DONE = "done"
HELD = "held"  # the store is down; the order is kept, and its outcome is told a second time
REFUSED = "refused"
