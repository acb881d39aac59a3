"""The process that runs user code. It needs Python 3.9 or later and numpy, and imports nothing else of gearmesh.

    python child CONTROL_FD MODULE:FUNCTION OPTIONS

Its modules are loaded under a name that no user's module has, so that they shadow none. Messages are JSON, one per
packet of a Unix socket; tensors are in slots of shared memory:

    here -> parent   {"op": "ready", "inputs": [...] | null, "outputs": [...] | null, "code": digest, "declared": {...}}
                     {"op": "error", "text": traceback, "passing": whether it may be otherwise another time}
                                                                           it cannot be served; the process ends
    parent -> here   {"op": "memory", "bytes": n, "inputs": [...], "outputs": [...], "room": n} with its descriptor
                     {"op": "run", "id": 7, "rows": 3, "at": offset of the slot, "described": bytes}
    here -> parent   {"op": "done", "id": 7, "begin": s, "end": s, "error": null | text, "trace": text,
                      "described": bytes, "refused": whether it is the inputs that are wrong}

Instants are of CLOCK_MONOTONIC. Where every request has the same shape, `room` is 0, and each tensor spec says where
in the slot the tensor is: {"name", "dtype", "shape": [-1, ...], "at": offset}. Else a slot has `room` bytes, and begins
with `described` bytes of JSON (see `open_batches`).
"""
