"""frontend/core/askers.py: who asks, as one number."""

import pytest

from frontend.core.askers import ASKERS_MAX, SOURCE_LENGTH_MAX, Asker, Askers, asker_of, source_of
from frontend.core.protocol import InferRequest, RequestRefused

SEED, OTHER_SEED = 7, 8


def infer(source: str | None = None) -> InferRequest:
    return InferRequest(id=7, inputs=[], model="m", source=source)


def test_a_connection_is_one_client_and_each_source_of_it_another() -> None:
    asked = [(b"\0one", None), (b"\0two", None), (b"\0one", "a"), (b"\0one", "b"), (b"\0two", "a"), (b"\0one", "")]
    numbers = [asker_of(identity, infer(source), SEED) for identity, source in asked]
    assert len(set(numbers)) == len(asked)
    assert numbers == [asker_of(identity, infer(source), SEED) for identity, source in asked]
    assert all(0 < number < 1 << 31 for number in numbers)
    assert not set(numbers) & {asker_of(identity, infer(source), OTHER_SEED) for identity, source in asked}


def test_no_name_of_a_connection_is_another_connection_with_a_source() -> None:
    victim = asker_of(b"proxy", infer("a"), SEED)
    for name in (b"proxya", b"proxy\0a", b"proxy a", b"proxy:a"):
        for source in (None, "", "a"):
            assert asker_of(name, infer(source), SEED) != victim


def test_who_does_not_know_the_seed_does_not_know_a_client_s_number() -> None:
    assert len({asker_of(b"\0one", infer(), seed) for seed in range(100)}) == 100


def test_a_number_names_the_client_that_asked_lately() -> None:
    askers = Askers(SEED)
    asked = [(b"\0one", None), (b"\0one", "a"), (b"\0two", None)]
    for identity, source in asked * 2:
        number = askers.number(identity, infer(source))
        assert number == asker_of(identity, infer(source), SEED)
        assert askers.name(number) == Asker(identity, source)
    assert askers.name(0) is None


def test_of_more_clients_than_are_remembered_the_first_has_no_name_and_the_same_number() -> None:
    askers = Askers(SEED)
    numbers = [askers.number(b"\0one", infer(str(n))) for n in range(ASKERS_MAX + 1)]
    assert askers.name(numbers[0]) is None
    assert askers.name(numbers[1]) == Asker(b"\0one", "1")
    assert askers.name(numbers[-1]) == Asker(b"\0one", str(ASKERS_MAX))
    assert askers.number(b"\0one", infer("0")) == numbers[0]
    assert askers.name(numbers[1]) is None


def test_a_source_that_is_too_long_is_refused() -> None:
    asker_of(b"one", infer("x" * SOURCE_LENGTH_MAX), SEED)
    with pytest.raises(RequestRefused) as raised:
        asker_of(b"one", infer("x" * (SOURCE_LENGTH_MAX + 1)), SEED)
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
    asker_of(b"one", infer(source_of("2001:db8::1", "x" * 1000)), SEED)
