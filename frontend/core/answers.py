"""Answers of the public protocol for calls that have ended. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.core.elements import listed
from frontend.core.open_calls import Call, Completed
from frontend.core.output_rules import Shapes
from frontend.core.protocol import AnswerTensor, ClientAnswer, Error
from mesh import wire
from mesh.codes import AnswerStatus
from mesh.tensors import VARIABLE

OK = AnswerStatus.OK  # for what runs for every request
_encode = msgspec.msgpack.Encoder().encode


def ok_answer(
    call: Call,
    outputs: Sequence[Any],
    now: float,
    completed: Completed | None = None,
    *,
    cached: bool = False,
    shapes: Shapes = (),
) -> ClientAnswer:
    """The ok answer of a call, from the cache if `completed` is None.

    `completed` may be of another call, which this one waited for: then `request` is that one's number.

    Outputs of a framed call travel as frames beside it. `shapes`: of the outputs; (): those of the spec.
    """
    name, version = wire.split_ref(call.ref)
    return ClientAnswer(
        id=call.id,
        status=OK,
        outputs=_tensors(call, outputs, shapes)
        if call.rules is not None
        else [
            AnswerTensor(spec.name, spec.dtype, (call.rows, *spec.shape[1:]), None if call.framed else data)
            for spec, data in zip(call.spec.outputs, outputs, strict=True)
        ],
        model=name,
        version=version,
        latency_ms=(now - call.received_s) * 1e3,
        predicted_ms=completed.predicted_s * 1e3 if completed is not None else None,
        batch_size=completed.batch_size if completed is not None else None,
        device=completed.device if completed is not None else None,
        cached=cached,
        cold=completed.cold if completed is not None else None,
        batch_padded=(completed.batch_padded or None) if completed is not None else None,
        request=completed.call.number if completed is not None else None,
    )


def encoded_ok(
    call: Call, outputs: Sequence[Any], now: float, completed: Completed | None, cached: bool, shapes: Shapes
) -> bytes:
    """What `ok_answer` returns, encoded: from the version's form, where that has all that is told."""
    form = call.form
    if form is not None and completed is not None:
        number = completed.call.first
        if number is not None and not cached:
            return form.computed(
                call.id,
                call.rows,
                outputs,
                call.framed,
                now - call.received_s,
                completed.predicted_s,
                completed.batch_size,
                completed.device,
                completed.cold,
                completed.batch_padded,
                number,
            )
    elif form is not None and cached:
        return form.cached(call.id, call.rows, outputs, call.framed, now - call.received_s)
    return _encode(ok_answer(call, outputs, now, completed, cached=cached, shapes=shapes))


def _tensors(call: Call, outputs: Sequence[Any], shapes: Shapes) -> list[AnswerTensor]:
    """The outputs of a call that have shapes of their own."""
    tensors = []
    for spec, data, shape in zip(call.spec.outputs, outputs, shapes, strict=True):
        inside = listed(data, math.prod(shape), spec.dtype) if spec.dtype in VARIABLE and not call.framed else data
        tensors.append(AnswerTensor(spec.name, spec.dtype, shape, None if call.framed else inside))
    return tensors


def error_answer(
    call: Call,
    status: str,
    code: str,
    message: str,
    now: float,
    predicted_ms: float | None = None,
    retry_after_ms: float | None = None,
) -> ClientAnswer:
    """The answer of a call that ended without outputs."""
    name, version = wire.split_ref(call.ref)
    return ClientAnswer(
        id=call.id,
        status=status,
        model=name,
        version=version,
        latency_ms=(now - call.received_s) * 1e3,
        predicted_ms=predicted_ms,
        error=Error(code, message, None, retry_after_ms),
        request=call.number,
    )
