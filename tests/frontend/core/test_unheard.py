"""frontend/core/unheard.py and connections.py: who is who, and which connections are closed, on virtual time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core.connections import LEFT, ClientId, Connections, is_reserved
from frontend.core.unheard import (
    FIRST_LOOK_S,
    FREE_S,
    GREETING_BYTES,
    HOSTS_MAX,
    IN_USE_S,
    IN_USE_S_FORGOTTEN,
    IN_USE_S_MAX,
    LARGE_BYTES,
    LARGE_FREE_S,
    LARGE_IN_USE_S,
    LOOK_S,
    LOOKS_MAX,
    PLAIN,
    Received,
    Unheard,
)
from mesh.codes import IdentityRefusal

BEAT_S = 2.0
NAME, OTHER = b"host-A", b"a-longer-name"
REQUEST = 40  # bytes of a small request
BEFORE, DRAWN, NEXT = b"\x00abcc", b"\x00abcd", b"\x00abce"  # of this form, and one after the other


class Port:
    """Connections and what was received of each; time goes on by hand."""

    def __init__(self) -> None:
        self.connections = Connections(Unheard(PLAIN, BEAT_S), BEFORE)
        self.now = 100.0
        self.sent: dict[int, int] = {}  # {descriptor: bytes of its handshake and requests}
        self.since: dict[int, float] = {}
        self.host: dict[int, str] = {}

    def come(self, descriptor: int, name: bytes = b"", request: int = 0, host: str = "here") -> int:
        self.sent[descriptor] = PLAIN.handshake + len(name) + request
        self.since[descriptor], self.host[descriptor] = self.now, host
        number = self.connections.accepted(descriptor, self.now)
        self.connections.check()
        return number

    def speak(self, descriptor: int, identity: bytes, *, delimited: bool = False) -> tuple[ClientId, list[ClientId]]:
        told = self.connections.spoke(identity, delimited, descriptor)
        self.connections.check()
        return told

    def end(self, descriptor: int) -> list[ClientId]:
        left = self.connections.ended(descriptor)
        self.connections.check()
        return left

    def look(self, descriptor: int) -> Received | None:
        beats = int((self.now - self.since[descriptor]) / BEAT_S)
        return Received(self.sent[descriptor] + beats * PLAIN.heartbeat, self.host[descriptor])

    def examine(self, after_s: float) -> list[tuple[int, Any]]:
        """(descriptor, why) of what is closed by looks in this time."""
        closed: list[tuple[int, Any]] = []
        until = self.now + after_s
        while (at := self.connections.unheard.wake_at()) is not None and at <= until:
            self.now = at
            refusals = self.connections.unheard.examine(self.look, self.now)
            for refusal in refusals:
                assert self.connections.number(refusal.descriptor) == refusal.number
                self.end(refusal.descriptor)
            closed += [(refusal.descriptor, refusal.why) for refusal in refusals]
        self.now = until
        return closed


def test_a_client_is_its_connection() -> None:
    port = Port()
    port.come(7)
    assert port.speak(7, DRAWN) == (ClientId(DRAWN, False), [])
    assert port.speak(7, DRAWN, delimited=True) == (ClientId(DRAWN, True), [])
    assert port.end(7) == [ClientId(DRAWN, False), ClientId(DRAWN, True)]
    assert port.end(7) == []
    assert len(port.connections) == 0


def test_an_identity_that_was_chosen_is_another_client_on_each_connection() -> None:
    port = Port()
    first = ClientId(NAME, False, port.come(7))
    assert port.speak(7, NAME) == (first, [])
    assert port.connections.is_there(first)
    assert port.end(7) == [first]
    assert not port.connections.is_there(first)
    second = ClientId(NAME, False, port.come(7))
    assert port.speak(7, NAME) == (second, [])
    assert (port.connections.is_there(first), port.connections.is_there(second)) == (False, True)


def test_a_message_that_comes_after_its_connection_has_ended_is_of_a_client_that_left() -> None:
    port = Port()
    port.come(7)
    port.end(7)
    for identity, number in ((DRAWN, 0), (NAME, LEFT)):
        client, left = port.speak(7, identity)
        assert (client, left) == (ClientId(identity, False, number), [client])
    assert not port.connections.is_there(ClientId(NAME, False, LEFT))


def test_a_late_message_is_told_from_the_next_client_with_its_descriptor_when_that_speaks() -> None:
    port = Port()
    port.come(7)
    late, _ = port.speak(7, DRAWN)  # of an earlier connection: what came of this one was read before
    port.come(8)
    assert port.speak(7, NEXT) == (ClientId(NEXT, False), [late])


@given(st.lists(st.tuples(st.sampled_from("ace"), st.integers(1, 4), st.sampled_from([DRAWN, NAME, OTHER]))))
def test_whatever_happens_each_identity_has_one_connection(events: list[tuple[str, int, bytes]]) -> None:
    port = Port()
    there: set[int] = set()
    for kind, descriptor, identity in events:
        if kind == "a" and descriptor not in there:
            port.come(descriptor, identity)
            there.add(descriptor)
        elif kind == "c":
            client, left = port.speak(descriptor, identity)
            assert (client in left) == (descriptor not in there)
        elif kind == "e":
            port.end(descriptor)
            there.discard(descriptor)
        port.examine(0.3)
        there &= {each for each in there if port.connections.number(each) is not None}


@pytest.mark.parametrize(
    ("identity", "reserved", "drawn"),
    [
        (DRAWN, True, 1),
        (NEXT, True, 2),
        (BEFORE, True, 0),
        (NAME, False, 0),
        (b"\x00", False, 0),
        (b"\x00abcde", False, 0),
    ],
)
def test_identities_that_libzmq_draws(identity: bytes, reserved: bool, drawn: int) -> None:
    """`drawn`: as how many connections have come, from which on; 0: never."""
    assert is_reserved(identity) is reserved
    port = Port()
    for count in range(4):
        assert port.connections.is_drawn(identity) is (0 < drawn <= count)
        port.come(count + 1)


def test_the_numbers_that_libzmq_draws_begin_anew_after_the_last() -> None:
    connections = Connections(Unheard(PLAIN, BEAT_S), b"\x00\xff\xff\xff\xff")
    assert not connections.is_drawn(bytes(5))
    connections.accepted(1, 0.0)
    assert connections.is_drawn(bytes(5))


@pytest.mark.parametrize(
    ("request_bytes", "in_use_s", "free_s"), [(REQUEST, IN_USE_S, FREE_S), (1 << 20, LARGE_IN_USE_S, LARGE_FREE_S)]
)
def test_the_second_of_one_name_is_closed_while_the_first_lives_and_soon_after_its_end(
    request_bytes: int, in_use_s: float, free_s: float
) -> None:
    assert (request_bytes > LARGE_BYTES) == (free_s == LARGE_FREE_S)
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    port.come(2, NAME, request_bytes)
    assert port.examine(FIRST_LOOK_S + in_use_s - LOOK_S) == []
    assert port.examine(LOOK_S) == [(2, IdentityRefusal.IN_USE)]
    port.come(3, NAME, request_bytes)
    port.end(1)
    assert port.examine(FIRST_LOOK_S + free_s - LOOK_S) == []
    assert port.examine(LOOK_S) == [(3, IdentityRefusal.FREE_AGAIN)]


def test_one_that_has_waited_already_is_closed_at_the_next_look_after_the_end_of_the_first() -> None:
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    port.come(2, NAME, REQUEST)
    port.examine(FIRST_LOOK_S + FREE_S)
    port.end(1)
    assert port.examine(LOOK_S) == [(2, IdentityRefusal.FREE_AGAIN)]


def test_of_two_that_were_quiet_the_one_that_asks_in_vain_is_closed() -> None:
    port = Port()
    port.come(1, NAME)
    port.come(2, NAME)
    assert port.examine(100.0) == []
    port.sent[2] += REQUEST
    assert port.examine(LOOK_S + IN_USE_S) == [(2, IdentityRefusal.IN_USE)]


@pytest.mark.parametrize("others", [[NAME], [OTHER], [NAME, OTHER, b"n" * 255]])
def test_who_is_only_quiet_is_never_closed(others: list[bytes]) -> None:
    port = Port()
    for i, name in enumerate(others):
        port.come(i, name)
        port.speak(i, name)
    port.come(90)
    port.come(91, b"quiet!")
    assert port.examine(1000.0) == []
    for i in range(len(others)):
        port.end(i)
    assert port.examine(1000.0) == []


@pytest.mark.parametrize(
    ("received", "sent", "old"),
    [
        (GREETING_BYTES + 1, 10, True),
        (GREETING_BYTES + 1, GREETING_BYTES - 1, True),
        (PLAIN.handshake, 12, True),
        (1 << 30, 12, True),
        (GREETING_BYTES, 12, False),  # a greeting that is being answered
        (GREETING_BYTES + 1, GREETING_BYTES, False),
        (GREETING_BYTES + 1, None, False),
    ],
)
def test_who_sends_more_than_a_greeting_and_was_not_sent_one_is_closed(
    received: int, sent: int | None, old: bool
) -> None:
    unheard = Unheard(PLAIN, BEAT_S)
    unheard.add(7, 1, 100.0)
    assert unheard.examine(lambda _: Received(received, "here", sent), 100.0 + FIRST_LOOK_S / 2) == []
    for _ in range(2):  # once more, as long as it is there
        refusals = unheard.examine(lambda _: Received(received, "here", sent), 100.0 + FIRST_LOOK_S)
        assert refusals == ([(7, 1, IdentityRefusal.OLD_PROTOCOL)] if old else [])
    unheard.ended(7)
    assert unheard.examine(lambda _: Received(received, "here", sent), 101.0) == []


def test_a_large_message_that_still_comes_is_waited_for() -> None:
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    port.come(2, b"", 1 << 20)
    for _ in range(40):
        assert port.examine(LOOK_S) == []
        port.sent[2] += 1 << 16
    port.end(1)
    for _ in range(40):
        assert port.examine(LOOK_S) == []
        port.sent[2] += 1 << 16


def test_where_the_system_does_not_say_what_it_received_nobody_is_closed() -> None:
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    port.come(2, NAME, REQUEST)
    assert port.connections.unheard.examine(lambda _: None, port.now + 10) == []
    assert port.connections.unheard.wake_at() is None


def test_a_host_that_comes_again_and_again_waits_longer_each_time_and_another_does_not() -> None:
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    pause_s = IN_USE_S
    for _ in range(8):
        began_s = port.now
        port.come(2, NAME, REQUEST)
        while not port.examine(LOOK_S):
            pass
        assert port.now - began_s == pytest.approx(FIRST_LOOK_S + pause_s, abs=LOOK_S)
        pause_s = min(2 * pause_s, IN_USE_S_MAX)
    port.come(3, NAME, REQUEST, host="there")
    assert port.examine(FIRST_LOOK_S + IN_USE_S) == [(3, IdentityRefusal.IN_USE)]
    port.now += IN_USE_S_FORGOTTEN + 1
    port.come(2, NAME, REQUEST)
    assert port.examine(FIRST_LOOK_S + IN_USE_S) == [(2, IdentityRefusal.IN_USE)]


def test_what_is_looked_at_and_remembered_is_bounded() -> None:
    port = Port()
    port.come(1, NAME)
    port.speak(1, NAME)
    many = 2 * HOSTS_MAX
    for i in range(2, many + 2):
        port.come(i, NAME, REQUEST, host=str(i))
    looked: list[int] = []

    def look(descriptor: int) -> Received | None:
        looked.append(descriptor)
        return port.look(descriptor)

    for turn in range(many // LOOKS_MAX):
        port.now += 1.0
        port.connections.unheard.examine(look, port.now)
        assert len(looked) == (turn + 1) * LOOKS_MAX
    assert sorted(looked) == list(range(2, many + 2))
