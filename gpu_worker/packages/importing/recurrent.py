"""Lets torch.export follow recurrent layers over sequences of any length: they stay one operation of the graph.

torch itself follows such a layer step by step, and so makes a constant of the number of steps. Only the shapes of its
results are needed, and these follow from its arguments.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import DispatchKey

LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


def _shaped(
    given: torch.Tensor, states: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Returns results of the right shapes, whatever is in them."""
    several = isinstance(states, list | tuple)  # of an LSTM, the cells too
    first = states[0] if several else states
    whole = given.new_empty((*given.shape[:2], first.shape[2] * (2 if bidirectional else 1)))
    return whole, *(torch.empty_like(state) for state in (states if several else [states]))


@contextlib.contextmanager
def whole_layers() -> Iterator[None]:
    """In the block, recurrent layers on tensors without values give tensors of the right shapes."""
    operations = [getattr(torch.ops.aten, name).input for name in LAYERS]
    kept = [{key: operation.py_kernels[key] for key in KEYS if key in operation.py_kernels} for operation in operations]
    try:
        for operation in operations:
            _put(operation, dict.fromkeys(KEYS, _shaped))
        yield
    finally:
        for operation, kernels in zip(operations, kept, strict=True):
            _put(operation, kernels)


def _put(operation: Any, kernels: dict[DispatchKey, Any]) -> None:
    """These are the operation's kernels in Python, for these keys; it has no others for them."""
    for key in KEYS:
        operation.py_kernels.pop(key, None)
    operation.py_kernels.update(kernels)
    operation._dispatch_cache.clear()
