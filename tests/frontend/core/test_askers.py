"""frontend/core/askers.py: who asks, as one number."""

import pytest

from frontend.core.askers import SOURCE_LENGTH_MAX, asker_of, source_of
from frontend.core.protocol import InferRequest, RequestRefused

SECRET, OTHER_SECRET = 0x9E3779B97F4A7C15, 7


def infer(source: str | None = None) -> InferRequest:
    return InferRequest(id=7, inputs=[], model="m", source=source)


def test_a_connection_is_one_client_and_each_source_of_it_another() -> None:
    asked = [(b"\0one", None), (b"\0two", None), (b"\0one", "a"), (b"\0one", "b"), (b"\0two", "a"), (b"\0one", "")]
    numbers = [asker_of(identity, infer(source), SECRET) for identity, source in asked]
    assert len(set(numbers)) == len(asked)
    assert numbers == [asker_of(identity, infer(source), SECRET) for identity, source in asked]
    assert all(0 < number < 1 << 31 for number in numbers)
    assert not set(numbers) & {asker_of(identity, infer(source), OTHER_SECRET) for identity, source in asked}


def test_no_name_of_a_connection_is_another_connection_with_a_source() -> None:
    victim = asker_of(b"proxy", infer("a"), SECRET)
    for name in (b"proxya", b"proxy\0a", b"proxy a", b"proxy:a"):
        for source in (None, "", "a"):
            assert asker_of(name, infer(source), SECRET) != victim


def test_a_source_that_is_too_long_is_refused() -> None:
    asker_of(b"one", infer("x" * SOURCE_LENGTH_MAX), SECRET)
    with pytest.raises(RequestRefused) as raised:
        asker_of(b"one", infer("x" * (SOURCE_LENGTH_MAX + 1)), SECRET)
    assert (raised.value.code, raised.value.field, raised.value.id) == ("bad_field", "source", 7)


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7", "10.0.0.1 192.0.2.7"),
        ("10.0.0.1", "a claim, another, 192.0.2.7 ", "10.0.0.1 192.0.2.7"),
        ("", "", ""),
        ("10.0.0.1", "\udcff", "10.0.0.1 ?"),
    ],
)
def test_a_gateway_s_client_is_its_peer_and_whom_the_peer_itself_names(peer: str, forwarded: str, source: str) -> None:
    assert source_of(peer, forwarded) == source


def test_a_gateway_s_source_is_never_too_long() -> None:
    asker_of(b"one", infer(source_of("2001:db8::1", "x" * 1000)), SECRET)
