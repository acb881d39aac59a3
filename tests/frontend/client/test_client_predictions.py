"""frontend/client/prediction.py: what is read from an answer is an ordinary, frozen prediction."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.client.conversation import Conversation
from frontend.client.prediction import Prediction, prediction_of

OTHERS = [field.name for field in fields(Prediction) if field.name not in ("outputs", "answer")]


def made_plainly(outputs: dict[str, Any], answer: dict[str, Any]) -> Prediction:
    told = {name: answer[name] for name in OTHERS if name in answer}
    told = {"model": "", "version": "", "latency_ms": 0.0, "predicted_ms": None, "batch_size": None} | told
    told |= {"device": told.get("device"), "cached": bool(told.get("cached"))}
    told |= {"default_used": bool(told.get("default_used")), "models_used": tuple(told.get("models_used") or ())}
    return Prediction(outputs, answer=answer, **told)


@given(st.dictionaries(st.sampled_from(OTHERS), st.none() | st.integers() | st.text() | st.booleans()))
def test_a_prediction_has_what_the_answer_says_and_else_its_defaults(told: dict[str, Any]) -> None:
    answer: dict[str, Any] = {**told, "status": "ok", "models_used": ["a", "b"] if told.get("app") else None}
    for name in ("model", "version", "latency_ms"):
        answer = {name: "m", **answer}
    read, plain = prediction_of({}, answer), made_plainly({}, answer)
    assert read == plain
    assert repr(read) == repr(plain)
    assert type(read) is Prediction


def test_it_is_frozen_and_can_be_copied_pickled_and_replaced() -> None:
    outputs = [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": np.ones(2, np.float32).tobytes()}]
    read = Conversation().understand({"status": "ok", "model": "m", "outputs": outputs}, ())
    assert isinstance(read, Prediction)
    with pytest.raises(FrozenInstanceError):
        read.model = "other"  # type: ignore[misc]
    for twin in (copy.copy(read), pickle.loads(pickle.dumps(read))):  # noqa: S301 - made here
        assert (twin.model, twin.output.tolist()) == ("m", [[1.0, 1.0]])
    assert replace(read, model="n").model == "n"


@pytest.mark.parametrize("framed", [False, True])
def test_the_arrays_of_an_answer_cannot_be_written(framed: bool) -> None:
    data = np.ones(2, np.float32).tobytes()
    output = {"name": "y", "dtype": "float32", "shape": [1, 2]} | ({} if framed else {"data": data})
    read = Conversation().understand({"status": "ok", "outputs": [output]}, [memoryview(data)] if framed else [])
    assert isinstance(read, Prediction)
    assert not read.output.flags.writeable
