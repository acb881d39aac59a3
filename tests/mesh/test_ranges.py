"""mesh/wire/ranges.py: what is out of range is refused where it is decoded, in every message that a service may get."""

import copy
import math
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from mesh import wire
from mesh.wire.ranges import SAID_MAX, TEXT_MAX, cut, cut_all
from tests.mesh.test_wire import DECODERS, MESSAGES, PART, PLACES, PREPARED, UNIONS, label, sent

UNTRUSTED = ("ToBroker", "ToController", "FromControllerToFrontend", "FromControllerToWorker", "ToResults")
INTO_SERVICES = [(union, message) for union, message in PLACES if union in UNTRUSTED]
FREE = (wire.PutApp,)  # an application's definition is checked by the broker
WRONG_FLOATS = (math.nan, math.inf, -math.inf, 1e300, -1e300)
WRONG_INTS = (-(2**62), 2**63)
LONG = "x" * (1 << 20)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of everything in it that is no list or map."""
    if isinstance(value, list | dict):
        for key in range(len(value)) if isinstance(value, list) else value:
            yield from leaves(value[key], (*path, key))
    else:
        yield path, value


def changed(raw: Any, path: tuple[Any, ...], value: Any) -> bytes:
    """The envelope with another value in one place."""
    raw = copy.deepcopy(raw)
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return msgspec.msgpack.encode(raw)


def wrong_for(value: Any) -> tuple[Any, ...]:
    """Values of the same type that no field may have."""
    if isinstance(value, bool) or value is None:
        return ()
    if isinstance(value, float):
        return WRONG_FLOATS
    if isinstance(value, int):
        return WRONG_INTS
    return (LONG,) if isinstance(value, str) else ()


@pytest.mark.parametrize(("union", "message"), INTO_SERVICES, ids=label)
def test_no_number_is_out_of_range_and_no_text_without_end(union: str, message: Any) -> None:
    raw = msgspec.msgpack.decode(sent(message))
    for path, value in leaves(raw):
        if isinstance(message, FREE) and len(path) > 3:
            continue
        for wrong in wrong_for(value):
            with pytest.raises(msgspec.ValidationError):
                DECODERS[union].decode(changed(raw, path, wrong))


@pytest.mark.parametrize(("union", "message"), INTO_SERVICES, ids=label)
def test_no_list_is_without_end(union: str, message: Any) -> None:
    raw = msgspec.msgpack.decode(sent(message))
    (fields,) = raw[3]
    for index, name in enumerate(message.__struct_fields__, 1):
        if fields[index] and isinstance(getattr(message, name), tuple):
            many = [*fields[:index], fields[index] * (1 << 18), *fields[index + 1 :]]
            with pytest.raises(msgspec.ValidationError):
                DECODERS[union].decode(msgspec.msgpack.encode([*raw[:3], [many]]))


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"rows": -5}, {"rows": 2**62}, {"frames": 2**40}, {"frames": -1}, {"weight": 0.0}, {"weight": -1.0},
     {"attempt": -1}, {"attempt": 2**40}, {"request": -1}, {"inline": (b"",) * 65}],
    ids=str,
)  # fmt: skip
def test_a_submit_that_no_frontend_would_make_is_refused(wrong: dict[str, Any]) -> None:
    submit: dict[str, Any] = {"request": 1, "attempt": 0, "ref": "m:1", "rows": 1, "budget_s": 0.1}
    body = sent(wire.Submit(**{**submit, **wrong}))
    with pytest.raises(msgspec.ValidationError):
        DECODERS["ToController"].decode(body)


@pytest.mark.parametrize("ref", ["", "m", ":1", "m:", "m:one", "m:1 ", "../m:1", "m:1:1", "m\n:1", "m:1\n", "-m:1"])
def test_what_is_no_ref_cannot_be_prepared_offered_or_reported(ref: str) -> None:
    spec = PREPARED.spec
    assert spec is not None
    for union, message in (
        ("ToController", wire.Prepared(ref=ref, ok=True)),
        ("ToBroker", wire.PrepareReport(ref=ref, ok=True)),
        ("ToBroker", wire.Register(member=_member(wire.Offer(ref=ref, spec=spec, code="")))),
    ):
        with pytest.raises(msgspec.ValidationError):
            DECODERS[union].decode(sent(message))


@pytest.mark.parametrize("dtype", ["", "float31", "object", "float32 ", "<f4"])
def test_a_tensor_has_a_dtype_that_there_is(dtype: str) -> None:
    tensor = wire.TensorSpec(name="x", dtype=dtype, shape=(-1,))
    spec = wire.ModelSpec(inputs=(tensor,), outputs=(), batch_max=1, slo_ms=1.0)
    with pytest.raises(msgspec.ValidationError):
        DECODERS["ToController"].decode(sent(wire.Prepared(ref="m:1", ok=True, spec=spec)))


def test_there_is_a_service_behind_every_union_here() -> None:
    assert set(UNTRUSTED) < set(UNIONS)
    assert {type(message) for _, message in INTO_SERVICES} >= set(typing.get_args(wire.ToController))
    assert PART in next(message.parts for message in MESSAGES if isinstance(message, wire.Infer))


def test_a_long_text_is_cut_to_its_two_ends() -> None:
    text = "".join(map(str, range(10_000)))
    short = cut(text)
    assert len(short) <= SAID_MAX < TEXT_MAX
    assert text.startswith(short[:1000])
    assert text.endswith(short[-1000:])
    assert cut("as it is") == "as it is"
    assert cut_all([text] * 1000) == (*(short,) * 63, "and 937 more")
    assert cut_all(["one", "two"]) == ("one", "two")


def _member(offer: wire.Offer) -> wire.Member:
    return wire.Member(id="gpu_worker-1", role="gpu_worker", host="h", offer=offer)
