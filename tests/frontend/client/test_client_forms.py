"""frontend/client/forms.py: messages from forms are those of the plain packer, byte for byte."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.client.connection import options_of, packed
from frontend.client.conversation import Conversation, RequestTarget
from frontend.client.forms import FRAMED_BYTES, SHAPES_MAX, RequestForm

DTYPES = ("bool", "int8", "uint8", "int64", "uint32", "float16", "float32", "float64", "string")
SPECS = {
    "one": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
    "rows": [{"name": n, "dtype": dtype, "shape": [-1, -1]} for n, dtype in (("ids", "int64"), ("mask", "bool"))],
    "flat": [{"name": "n", "dtype": "uint8", "shape": [-1]}],
    "text": [{"name": "words", "dtype": "string", "shape": [-1]}],
    "none": [],
}  # fmt: skip


def conversation() -> Conversation:
    made = Conversation()
    made.learn({"models": [{"name": name, "inputs": inputs} for name, inputs in SPECS.items()]})
    made.learn_apps({"apps": [{"name": "one", "inputs": SPECS["one"]}]})
    return made


def plain(talk: Conversation, call: int, target: RequestTarget, x: Any, slo_ms: Any, options: Any) -> Any:
    """(message, frames) as the general way makes them."""
    message, frames = talk.infer(call, target, x, options_of(slo_ms, options))
    return packed(message), [bytes(frame) for frame in frames]


arrays = st.builds(
    lambda dtype, shape, back: (
        (np.arange(int(np.prod(shape))) % 100).reshape(shape).astype(dtype)[:: -1 if back else 1]
        if shape
        else np.zeros((), dtype)
    ),
    st.sampled_from(DTYPES[:-1]).map(np.dtype) | st.just(np.dtype(">f4")),
    st.lists(st.integers(0, 5) | st.just(300), max_size=3),
    st.booleans(),
)
words = st.just(np.array(["a", "bc"], object))
inputs = (
    arrays
    | words
    | st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=1, max_size=3)
    | st.dictionaries(st.sampled_from(["x", "ids", "mask", "n", "words", "other"]), arrays | words, min_size=1)
)
numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.booleans()
options = st.dictionaries(
    st.sampled_from(["context", "cache", "weight", "version", "strange"]),
    st.none() | numbers | st.text(max_size=40) | st.lists(st.integers(0, 3), max_size=2) | st.just(np.float32(2.5)),
)


@given(
    st.integers(1, 1 << 40), st.sampled_from([*SPECS, "unknown"]), st.booleans(), inputs, st.none() | numbers, options
)  # fmt: skip
def test_a_message_from_a_form_is_that_of_the_packer(
    call: int, name: str, app: bool, x: Any, slo_ms: Any, options: dict[str, Any]
) -> None:
    talk, target = conversation(), RequestTarget(name, app)
    form = talk.form(target)
    assert (form is None) == (name not in (talk.apps if app else talk.specs))
    made = None if form is None else form.infer(call, x, slo_ms, options)
    if made is not None:
        message, frames = made
        assert (message, [bytes(frame) for frame in frames]) == plain(talk, call, target, x, slo_ms, options)


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("one", np.ones((2, 4), np.float32)),
        ("one", np.ones(4, np.float32)),
        ("one", {"x": np.ones((FRAMED_BYTES // 16 + 1, 4), np.float32)}),
        ("one", np.ones((FRAMED_BYTES // 16, 4), np.float32)),
        ("rows", {"mask": np.ones((1, 7), np.bool_), "ids": np.ones((1, 7), np.int64)}),
        ("rows", {"ids": np.ones((4, 2000), np.int64), "mask": np.ones((4, 2000), np.bool_)}),
    ],
)
@pytest.mark.parametrize("told", [{}, {"cache": False, "version": "1", "context": None}])
def test_what_needs_no_conversion_takes_the_short_way(name: str, x: Any, told: dict[str, Any]) -> None:
    talk, target = conversation(), RequestTarget(name)
    form = talk.form(target)
    assert form is not None
    for call in (1, 200, 70_000):
        made = form.infer(call, x, 50.0, told)
        assert made is not None
        assert (made[0], [bytes(frame) for frame in made[1]]) == plain(talk, call, target, x, 50.0, told)


@pytest.mark.parametrize(
    ("x", "slo_ms", "told"),
    [
        (np.ones((2, 4), np.float64), 5, {}),
        (np.ones((2, 4), ">f4"), 5, {}),
        (np.ones((4, 2), np.float32).T, 5, {}),
        (np.ones((2, 2, 4), np.float32), 5, {}),
        ([[1.0, 2.0, 3.0, 4.0]], 5, {}),
        (np.ma.masked_array(np.ones((1, 4), np.float32)), 5, {}),
        ({"y": np.ones((2, 4), np.float32)}, 5, {}),
        (np.ones((2, 4), np.float32), np.float32(5), {}),
        (np.ones((2, 4), np.float32), 1 << 64, {}),
        (np.ones((2, 4), np.float32), 5, {"context": "\udc80"}),
        (np.ones((2, 4), np.float32), 5, {"inputs": "mine"}),
        (np.ones((2, 4), np.float32), 5, {"weight": np.float64(1.0)}),
    ],
)  # fmt: skip
def test_what_has_to_be_looked_at_is_left_to_the_general_way(x: Any, slo_ms: Any, told: dict[str, Any]) -> None:
    form = conversation().form(RequestTarget("one"))
    assert form is not None
    assert form.infer(1, x, slo_ms, told) is None


def test_a_form_is_of_what_is_deployed_now() -> None:
    talk, target = conversation(), RequestTarget("one")
    before = talk.form(target)
    assert talk.form(target) is before
    talk.learn({"models": [{"name": "one", "inputs": [{"name": "z", "dtype": "float32", "shape": [-1, 4]}]}]})
    after = talk.form(target)
    assert after is not None
    made = after.infer(1, np.ones((1, 4), np.float32), None, {})
    assert made is not None
    assert msgpack.unpackb(made[0])["inputs"][0]["name"] == "z"
    talk.learn({"models": []})
    assert talk.form(target) is None


def test_shapes_are_remembered_up_to_a_limit() -> None:
    form = RequestForm({"inputs": [{"name": "x", "dtype": "uint8", "shape": [-1, -1]}]}, "m", app=False)
    for length in range(SHAPES_MAX + 10):
        made = form.infer(1, np.zeros((1, length), np.uint8), None, {})
        assert made is not None
        assert msgpack.unpackb(made[0])["inputs"][0] == {
            "name": "x", "dtype": "uint8", "shape": [1, length], "data": bytes(length),
        }  # fmt: skip
    (kept,) = form.inputs.values()
    assert kept is not None
    assert len(kept.inline) <= SHAPES_MAX
