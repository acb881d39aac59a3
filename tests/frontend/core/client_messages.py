"""Messages of clients as tests make them: valid ones with changes, decoded and checked."""

from typing import Any

import msgpack
import pytest

from frontend.core import protocol
from frontend.core.checks import Checked, InputRules
from frontend.core.protocol import RequestRefused
from mesh import wire


def spec_of(*inputs: tuple[str, str, tuple[int, ...]]) -> wire.ModelSpec:
    tensors = tuple(wire.TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs)
    return wire.ModelSpec(inputs=tensors, outputs=tensors, batch_max=8, slo_ms=50.0)


ONE = spec_of(("x", "float32", (-1, 2, 3)))
TWO = spec_of(("x", "float32", (-1, 2)), ("y", "int64", (-1,)))
ROWS_MAX = 16


def tensor(**fields: Any) -> dict[str, Any]:
    """A valid tensor for ONE with these changes; a field set to `...` is left out."""
    made = {"name": "x", "dtype": "float32", "shape": [1, 2, 3], "data": bytes(24), **fields}
    return {name: value for name, value in made.items() if value is not ...}


def infer(**fields: Any) -> dict[str, Any]:
    """A valid request with id 7 and these changes; a field set to `...` is left out."""
    made = {"op": "infer", "id": 7, "model": "m", "inputs": [tensor()], **fields}
    return {name: value for name, value in made.items() if value is not ...}


def decode(message: Any) -> Any:
    return protocol.decode(msgpack.packb(message))


def refused(message: Any) -> RequestRefused:
    """The decoder's refusal of a message, or of bytes."""
    with pytest.raises(RequestRefused) as raised:
        protocol.decode(message if isinstance(message, bytes) else msgpack.packb(message))
    return raised.value


def checked(request: Any, frames: Any = (), spec: wire.ModelSpec = ONE) -> Checked:
    return InputRules(spec, ROWS_MAX).check(decode(request), frames)


def misfit(request: Any, frames: Any = (), spec: wire.ModelSpec = ONE) -> RequestRefused:
    """The refusal of a decoded request by the rules for its inputs."""
    with pytest.raises(RequestRefused) as raised:
        checked(request, frames, spec)
    return raised.value


def outcome(call: Any, *arguments: Any) -> Any:
    """What a call returns, or its refusal."""
    try:
        return call(*arguments)
    except RequestRefused as invalid:
        return invalid
