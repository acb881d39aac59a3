"""What the codes of results mean for the controller. Pure data."""

from mesh.versions import CHANGED

# codes of an INFER that another attempt would end with as well
INFER_FINAL = ("device_error", "model_error", "bad_input", "bad_batch", "rows_changed", "bad_outputs")
INFER_NOT_THERE = ("weights_missing", "unknown_model", "wrong_version")  # ... whose model was not in place
LOADED = ("ok", "already_loaded")  # codes of a LOAD after which the weights are in place
LOAD_FINAL = ("device_error", CHANGED)  # ... that another attempt would end with as well
MENDED_BY_PEOPLE = ("device_error", "rows_changed", "bad_outputs")  # codes that an operator should see in the log
