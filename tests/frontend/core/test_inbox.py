"""frontend/core/inbox.py: messages that wait for their turn, and which of them are worth it."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core.inbox import MESSAGE_BYTES, OVERDUE_BUDGETS, ROUND, TARGET_S, WAIT_BUDGETS, Inbox, may_wait

MANY, MEBIBYTE = 10_000, 1 << 20


def put(inbox: Inbox[str], client: str, *headers: bytes, at: float = 0.0) -> list[bool]:
    found = [inbox.put(client, header, [], at) for header in headers]
    inbox.check()
    return found


def taken(inbox: Inbox[str]) -> list[tuple[str, bytes]]:
    """All that waits, in the order in which it is taken."""
    found = []
    while (each := inbox.take()) is not None:
        found.append((each[0], each[1].header))
        inbox.check()
    return found


def test_clients_take_turns_and_the_messages_of_each_keep_their_order() -> None:
    inbox: Inbox[str] = Inbox(MANY, MEBIBYTE)
    put(inbox, "flood", b"1", b"2", b"3", b"4")
    put(inbox, "one", b"5")
    put(inbox, "two", b"6", b"7")
    assert [header for _, header in taken(inbox)] == [b"1", b"5", b"6", b"2", b"7", b"3", b"4"]
    assert (len(inbox), inbox.bytes_held) == (0, 0)


def test_a_message_that_waits_is_what_was_read_with_the_instant_of_its_arrival() -> None:
    inbox: Inbox[str] = Inbox(MANY, MEBIBYTE)
    assert inbox.put("a", b"header", [b"one", b"three"], 7.5)
    assert inbox.bytes_held == MESSAGE_BYTES + 6 + 8
    found: Any = inbox.take()
    assert (found[0], found[1].header, found[1].frames, found[1].arrived_s) == ("a", b"header", [b"one", b"three"], 7.5)


def test_a_client_that_is_gone_has_nothing_there_any_more() -> None:
    inbox: Inbox[str] = Inbox(MANY, MEBIBYTE)
    put(inbox, "gone", b"1", b"2")
    put(inbox, "stays", b"3")
    assert (inbox.drop("gone"), inbox.drop("gone"), inbox.drop("never")) == (2, 0, 0)
    inbox.check()
    assert taken(inbox) == [("stays", b"3")]


def test_there_is_room_for_others_however_much_one_sends() -> None:
    inbox: Inbox[str] = Inbox(100, MEBIBYTE)
    assert sum(put(inbox, "flood", *[b""] * 200)) == 80
    assert put(inbox, "one", b"1") == [True]


@pytest.mark.parametrize("frames", [[], [bytes(40_000)]])
def test_bytes_are_bounded_as_messages_are_with_their_frames(frames: list[bytes]) -> None:
    inbox: Inbox[str] = Inbox(MANY, MEBIBYTE)
    header = bytes(50_000 - sum(map(len, frames)))
    assert 15 <= sum(inbox.put("flood", header, frames, 0.0) for _ in range(100)) <= 18
    inbox.check()
    assert inbox.put("one", header, frames, 0.0)
    assert not inbox.put("two", bytes(2 * MEBIBYTE), [], 0.0)


def test_the_pace_of_late_says_how_long_a_message_will_wait() -> None:
    inbox: Inbox[str] = Inbox(MANY, MEBIBYTE)
    for _ in range(100):
        inbox.processed(10, 0.001)
    each = ROUND * 1e-4
    assert inbox.wait_s("flood") == pytest.approx(each, rel=0.05)
    put(inbox, "flood", *[b""] * 50)
    assert inbox.wait_s("flood") == pytest.approx(51 * each, rel=0.05)
    assert inbox.wait_s("one") == pytest.approx(2 * each, rel=0.05), "its turn comes after one message of the other"
    put(inbox, "one", b"")
    assert inbox.wait_s("flood") == pytest.approx(51 * 2 * each, rel=0.05)


@pytest.mark.parametrize(
    ("waited_s", "more_s", "worth"),
    [
        (0.0, TARGET_S, True),
        (TARGET_S, 0.0, True),
        (0.0, WAIT_BUDGETS, True),
        (0.0, 1.01 * WAIT_BUDGETS, False),
        (OVERDUE_BUDGETS, 0.0, True),
        (1.01 * OVERDUE_BUDGETS, 0.0, False),
        (0.0, float("inf"), False),
    ],
)
def test_a_message_may_wait_for_a_part_of_its_budget(waited_s: float, more_s: float, worth: bool) -> None:
    assert may_wait(waited_s, more_s, 1.0) is worth


def test_any_message_may_wait_a_little_whatever_its_budget() -> None:
    assert may_wait(TARGET_S / 2, TARGET_S / 2, 1e-6)
    assert not may_wait(TARGET_S, TARGET_S / 10, 1e-6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 300)), max_size=60))
def test_whatever_comes_the_bounds_hold_and_all_that_was_kept_is_taken_once(coming: list[tuple[str, int]]) -> None:
    inbox: Inbox[str] = Inbox(20, 8000)
    kept = [(client, b"x" * size) for client, size in coming if inbox.put(client, b"x" * size, [], 0.0)]
    inbox.check()
    assert sorted(taken(inbox)) == sorted(kept)


# -- the rule in virtual time -----------------------------------------------------------------------------------------

COST_S, REFUSAL_S, READ_S = 50e-6, 4e-6, 2e-6  # of a message that is processed, refused, read
READING_S, SLICE_S = 4e-3, 1.5e-3  # in one round


class Frontend:
    """The rounds of a port: it reads for a while what has come, then works off what waits, in virtual time."""

    def __init__(self, budget_s: float) -> None:
        self.inbox: Inbox[str] = Inbox(8192, 64 << 20)
        self.now = 0.0
        self.budget_s = budget_s
        self.served: dict[str, list[float]] = {}  # {client: how long each message had waited}
        self.refused: dict[str, list[float]] = {}

    def run(self, arrivals: list[tuple[float, str]]) -> None:
        coming = iter(sorted(arrivals))
        each = next(coming, None)
        while each is not None or len(self.inbox):
            ends_s = self.now + READING_S
            while each is not None and each[0] <= self.now < ends_s:
                self.now += READ_S
                self._came(*each)
                each = next(coming, None)
            self._work_off()
            if not len(self.inbox) and each is not None:
                self.now = max(self.now, each[0])

    def _came(self, at: float, client: str) -> None:
        wait_s = self.inbox.wait_s(client)
        if not may_wait(self.now - at, wait_s, self.budget_s) or not self.inbox.put(client, b"", [], at):
            self._refuse(client, at)

    def _work_off(self) -> None:
        began_s, count = self.now, 0
        while self.now < began_s + SLICE_S and (found := self.inbox.take()) is not None:
            client, message = found
            if may_wait(self.now - message.arrived_s, 0.0, self.budget_s):
                self.served.setdefault(client, []).append(self.now - message.arrived_s)
                self.now += COST_S
                count += 1
            else:
                self._refuse(client, message.arrived_s)
        if count:
            self.inbox.processed(count, self.now - began_s)
        self.inbox.check()

    def _refuse(self, client: str, at: float) -> None:
        self.now += REFUSAL_S
        self.refused.setdefault(client, []).append(self.now - at)


def load(client: str, per_s: float, seconds: float, seed: int) -> list[tuple[float, str]]:
    rng, at, found = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(per_s)) < seconds:
        found.append((at, client))
    return found


@pytest.mark.parametrize("times", [0.3, 0.5])
def test_nothing_is_refused_below_capacity(times: float) -> None:
    frontend = Frontend(0.1)
    frontend.run(load("a", times / COST_S, 1.0, 1))
    assert frontend.refused == {}


@pytest.mark.parametrize("times", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("clients", [1, 20])
def test_beyond_capacity_many_are_served_early_and_the_others_refused_within_20_ms(times: float, clients: int) -> None:
    frontend = Frontend(0.1)
    each = times * 0.5 / COST_S / clients
    frontend.run([one for i in range(clients) for one in load(str(i), each, 1.0, i)])
    waits = [s for served in frontend.served.values() for s in served]
    refusals = sorted(s for refused in frontend.refused.values() for s in refused)
    assert len(waits) > 0.5 * 0.5 / COST_S
    assert max(waits) <= OVERDUE_BUDGETS * 0.1
    assert refusals[int(0.99 * len(refusals))] < 0.02


@pytest.mark.parametrize("times", [2.0, 6.0])
def test_a_flood_takes_nothing_from_clients_that_ask_for_less_than_their_turn(times: float) -> None:
    frontend = Frontend(0.1)
    honest = [one for i in range(4) for one in load(f"honest {i}", 0.02 / COST_S, 1.0, i)]
    frontend.run([*load("flood", times / COST_S, 1.0, 9), *honest])
    assert {client for client in frontend.refused if client != "flood"} == set()
    assert len(frontend.refused["flood"]) > 0
    assert len(frontend.served["flood"]) > 0


def test_a_burst_that_its_budget_allows_is_served_as_a_whole() -> None:
    frontend = Frontend(10.0)
    frontend.run([(0.0, "a")] * 5000)
    assert frontend.refused == {}
    assert len(frontend.served["a"]) == 5000
