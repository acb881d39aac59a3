"""mesh/decoder_faults.py: what is read out of msgspec's sentences."""

from typing import Annotated, Any, Literal

import msgspec
import pytest

from mesh.decoder_faults import DecoderFault, FaultKind, read_fault


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    id: int | str
    inner: list[Inner] = []
    choice: Literal["one", "two"] = "one"
    share: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    data: memoryview | None = None


def fault(value: Any) -> DecoderFault:
    """What msgpack's decoder, and msgspec's conversion, find: the same."""
    found = []
    with pytest.raises(msgspec.ValidationError) as decoded:
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Outer)
    found.append(read_fault(decoded.value))
    with pytest.raises(msgspec.ValidationError) as converted:
        msgspec.convert(value, Outer)
    found.append(read_fault(converted.value))
    assert (found[0].kind, found[0].place) == (found[1].kind, found[1].place)
    return found[0]


@pytest.mark.parametrize(
    ("value", "kind", "place", "name"),
    [
        ({}, FaultKind.MISSING, "id", "id"),
        ({"id": 1, "inner": [{"name": "a"}, {}]}, FaultKind.MISSING, "inner[1].name", "name"),
        ({"id": 1, "other": 2}, FaultKind.UNKNOWN, "other", "other"),
        ({"id": 1, "inner": [{"name": "a", "x y": 2}]}, FaultKind.UNKNOWN, "inner[0].x y", "x y"),
        ({"id": 1, "k" * 1000: 2}, FaultKind.UNKNOWN, "k" * 64, "k" * 64),
        ({"id": 1, "choice": "three"}, FaultKind.CHOICE, "choice", ""),
        ({"id": 1.5}, FaultKind.VALUE, "id", ""),
        ({"id": 1, "inner": [{"name": "a", "shape": [1, "2"]}]}, FaultKind.VALUE, "inner[0].shape[1]", ""),
        ({"id": 1, "share": 0.0}, FaultKind.VALUE, "share", ""),
        ([], FaultKind.VALUE, None, ""),
    ],
)
def test_the_kind_the_place_and_the_name_are_read(value: Any, kind: FaultKind, place: str | None, name: str) -> None:
    found = fault(value)
    assert (found.kind, found.place, found.name) == (kind, place, name)


@pytest.mark.parametrize(("value", "place"), [({"id": 1, 3: 4}, None), ({"id": 1, "inner": [{3: 4}]}, "inner[0]")])
def test_a_key_that_is_no_string_is_of_its_own_kind(value: Any, place: str | None) -> None:
    with pytest.raises(msgspec.ValidationError) as decoded:
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Outer)
    found = read_fault(decoded.value)
    assert (found.kind, found.place, found.name) == (FaultKind.KEY, place, "")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"id": 1.5}, ("an integer or a string", "a number")),
        ({"id": 1, "inner": 5}, ("a list", "an integer")),
        ({"id": 1, "inner": [{"name": None}]}, ("a string", "nil")),
        ({"id": 1, "data": "x"}, ("bin", "a string")),
    ],
)
def test_types_have_the_protocol_s_names(value: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(msgspec.ValidationError) as decoded:
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Outer)
    text = read_fault(decoded.value).text
    assert all(word in text for word in words)
    assert "`" not in text
