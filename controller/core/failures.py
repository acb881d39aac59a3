"""What the codes of results mean for the controller. Pure data."""

from mesh.codes import ActionCode

DOUBLINGS_MAX = 30  # of a pause that doubles with each failure: every one has a maximum, and a float an end

# codes of an INFER that the same requests would end with again: any of them may be the cause
INFER_FINAL = frozenset(
    (
        ActionCode.DEVICE_ERROR, ActionCode.MODEL_ERROR, ActionCode.BAD_INPUT, ActionCode.BAD_BATCH,
        ActionCode.NO_MEMORY,
        ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS,
    )
)  # fmt: skip
# ... during which a process, or a device, may have died
INFER_DIED = frozenset((ActionCode.CONTAINER_DIED, ActionCode.DEVICE_LOST, ActionCode.LOST))
# ... whose model was not in place
INFER_NOT_THERE = frozenset((ActionCode.WEIGHTS_MISSING, ActionCode.UNKNOWN_MODEL, ActionCode.WRONG_VERSION))
# ... or of a LOAD, whose version the worker has not prepared
NOT_PREPARED = frozenset((ActionCode.UNKNOWN_MODEL, ActionCode.WRONG_VERSION))
# codes of a LOAD after which the weights are in place
LOADED = frozenset((ActionCode.OK, ActionCode.ALREADY_LOADED))
# ... that another attempt would end with as well
LOAD_FINAL = frozenset((ActionCode.DEVICE_ERROR, ActionCode.CONTENT_CHANGED))
# codes that an operator should see in the log
MENDED_BY_PEOPLE = frozenset((ActionCode.DEVICE_ERROR, ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS))
