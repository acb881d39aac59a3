"""frontend/core/answer_forms.py: answers from templates are, to the byte, those that the encoder makes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core.answer_forms import KEPT_MAX, AnswerForm
from frontend.core.answers import encoded_ok, ok_answer
from frontend.core.open_calls import Call, Completed
from mesh import wire
from mesh.tensors import DTYPES, byte_count

encode = msgspec.msgpack.Encoder().encode
IDS = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.text(max_size=300))
TENSORS = st.lists(
    st.builds(
        lambda name, dtype, rest: wire.TensorSpec(name=name, dtype=dtype, shape=(-1, *rest)),
        st.text(max_size=40),
        st.sampled_from(sorted(DTYPES)),
        st.lists(st.integers(0, 5), max_size=4),
    ),
    max_size=18,
)
SECONDS = st.floats(-1e9, 1e9)


def spec_of(*outputs: wire.TensorSpec) -> wire.ModelSpec:
    return wire.ModelSpec(inputs=(), outputs=outputs, batch_max=8, slo_ms=50.0)


def call_of(form: AnswerForm, spec: wire.ModelSpec, call_id: Any = 7, rows: int = 1, framed: bool = False) -> Call:
    call = Call("ann", call_id, "m:2", spec, rows, 100.0, 101.0, framed, form=form)
    call.first = 5
    return call


def zeros(spec: wire.ModelSpec, rows: int) -> list[memoryview]:
    return [memoryview(bytes(byte_count(t.dtype, (rows, *t.shape[1:])))) for t in spec.outputs]


@given(
    tensors=TENSORS, call_id=IDS, rows=st.sampled_from([1, 2, 15, 16, 127, 128, 300, 70_000]), framed=st.booleans(),
    latency_s=SECONDS, predicted_s=SECONDS, batch=st.integers(0, 1 << 24), padded=st.sampled_from([0, 1, 32, 1 << 20]),
    device=st.text(max_size=40), cold=st.booleans(), number=st.integers(1, 1 << 62), cached=st.booleans(),
)  # fmt: skip
def test_an_answer_from_the_form_is_the_encoded_answer(
    tensors: list[wire.TensorSpec], call_id: Any, rows: int, framed: bool, latency_s: float, predicted_s: float,
    batch: int, padded: int, device: str, cold: bool, number: int, cached: bool,
) -> None:  # fmt: skip
    spec = spec_of(*tensors)
    if rows > 300 and sum(byte_count(t.dtype, t.shape[1:]) for t in tensors) > 16:
        rows = 300
    form = AnswerForm("m:2", spec)
    call = call_of(form, spec, call_id, rows, framed)
    leader = call_of(form, spec, "another one's")
    leader.first = number
    completed = None if cached else Completed(leader, batch, predicted_s, device, cold, padded)
    outputs = zeros(spec, rows)
    assert form.fits(rows, outputs)
    now = 100.0 + latency_s
    expected = encode(ok_answer(call, outputs, now, completed, cached=cached))
    for _ in range(2):  # the second time from what was kept
        assert encoded_ok(call, outputs, now, completed, cached, ()) == expected


def test_outputs_fit_if_their_number_and_sizes_are_those_of_the_rows() -> None:
    one = wire.TensorSpec(name="x", dtype="int16", shape=(-1, 3))
    two = wire.TensorSpec(name="y", dtype="uint8", shape=(-1,))
    form = AnswerForm("m:2", spec_of(one))
    assert form.fits(2, [bytes(12)])
    assert not any(form.fits(2, outputs) for outputs in ([], [bytes(11)], [bytes(13)], [bytes(12), b""]))
    form = AnswerForm("m:2", spec_of(one, two))
    assert form.fits(2, [bytes(12), bytes(2)])
    assert not any(form.fits(2, outputs) for outputs in ([bytes(12)], [bytes(12), bytes(3)], [bytes(2), bytes(12)]))
    assert AnswerForm("m:2", spec_of()).fits(2, [])


@pytest.mark.parametrize("framed", [False, True])
def test_what_is_kept_is_bounded_and_right_after_it_was_dropped(framed: bool) -> None:
    spec = spec_of(wire.TensorSpec(name="x", dtype="uint8", shape=(-1,)))
    form = AnswerForm("m:2", spec)
    for rows in [*range(1, KEPT_MAX + 10), 1]:
        call = call_of(form, spec, 7, rows, framed)
        completed = Completed(call, rows, 0.25, f"cuda:{rows}")
        outputs = zeros(spec, rows)
        expected = encode(ok_answer(call, outputs, 100.5, completed))
        assert encoded_ok(call, outputs, 100.5, completed, False, ()) == expected
    assert form.kept <= 2 * KEPT_MAX


def test_a_call_without_a_form_or_a_number_is_encoded_as_any_message() -> None:
    spec = spec_of(wire.TensorSpec(name="x", dtype="uint8", shape=(-1,)))
    form = AnswerForm("m:2", spec)
    call = call_of(form, spec)
    completed = Completed(call, 8, 0.25, "cpu:0")
    call.first = None
    expected = encode(ok_answer(call, [b"a"], 100.5, completed))
    assert encoded_ok(call, [b"a"], 100.5, completed, False, ()) == expected
    call.form = None
    assert encoded_ok(call, [b"a"], 100.5, completed, False, ()) == expected
