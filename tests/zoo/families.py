"""All cases of the zoo."""

from tests.zoo import (
    attention,
    closures,
    convolutional,
    decisions,
    dtypes,
    lookups,
    memory,
    norms,
    onnx_files,
    recurrent,
    rows,
    shapes,
    signatures,
    structure,
)

FAMILIES = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (
        attention, recurrent, convolutional, norms, lookups, decisions, rows, shapes, memory, dtypes, signatures,
        structure, closures, onnx_files,
    )
}  # fmt: skip
LAYERS = ("attention", "recurrent", "convolutional", "norms")  # families that have a test file of their own
