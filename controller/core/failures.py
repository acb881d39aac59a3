"""What the codes of results mean for the controller. Pure data."""

from mesh.codes import ActionCode

INFER_FINAL = (
    ActionCode.DEVICE_ERROR, ActionCode.MODEL_ERROR, ActionCode.BAD_INPUT, ActionCode.BAD_BATCH,
    ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS,
)  # codes of an INFER that another attempt would end with as well  # fmt: skip
INFER_NOT_THERE = (
    ActionCode.WEIGHTS_MISSING, ActionCode.UNKNOWN_MODEL, ActionCode.WRONG_VERSION,
)  # ... whose model was not in place  # fmt: skip
LOADED = (ActionCode.OK, ActionCode.ALREADY_LOADED)  # codes of a LOAD after which the weights are in place
LOAD_FINAL = (ActionCode.DEVICE_ERROR, ActionCode.CONTENT_CHANGED)  # ... that another attempt would end with as well
MENDED_BY_PEOPLE = (
    ActionCode.DEVICE_ERROR, ActionCode.ROWS_CHANGED, ActionCode.BAD_OUTPUTS,
)  # codes that an operator should see in the log  # fmt: skip
