"""frontend/core/answers.py: the answers of calls that have ended."""

import pytest

from frontend.core.answers import error_answer, ok_answer
from frontend.core.open_calls import Call, Completed
from frontend.core.protocol import AnswerTensor, Error
from mesh import wire

TENSOR = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 2))
SPEC = wire.ModelSpec(inputs=(TENSOR,), outputs=(TENSOR,), batch_max=4, slo_ms=50.0)


def call(*, framed: bool = False) -> Call:
    return Call("ann", 7, "m:2", SPEC, 2, 100.0, 101.0, framed)


@pytest.mark.parametrize("framed", [False, True])
def test_outputs_are_described_and_inside_unless_they_travel_as_frames(framed: bool) -> None:
    made = call(framed=framed)
    answer = ok_answer(made, [b"abcd"], 100.25, Completed(made, 8, 0.125, "cpu:0", cold=True))
    assert answer.outputs == [AnswerTensor("x", "uint8", (2, 2), None if framed else b"abcd")]
    assert (answer.id, answer.status, answer.model, answer.version) == (7, "ok", "m", "2")
    assert (answer.latency_ms, answer.predicted_ms, answer.batch_size) == (250.0, 125.0, 8)
    assert (answer.device, answer.cached, answer.cold) == ("cpu:0", False, True)


def test_an_answer_from_the_cache_was_not_predicted_and_ran_nowhere() -> None:
    answer = ok_answer(call(), [b"abcd"], 100.25, cached=True)
    assert answer.cached
    assert (answer.predicted_ms, answer.batch_size, answer.device, answer.cold) == (None, None, None, None)


def test_a_call_without_outputs_says_why_and_when_to_come_again() -> None:
    answer = error_answer(call(), "rejected", "overload", "too much", 100.5, 1500.0, 20.0)
    assert (answer.id, answer.status, answer.model, answer.version) == (7, "rejected", "m", "2")
    assert (answer.latency_ms, answer.predicted_ms, answer.outputs) == (500.0, 1500.0, None)
    assert answer.error == Error("overload", "too much", None, 20.0)
