"""frontend/backlog.py: answers that wait for room in their clients' connections."""

import random

from frontend.backlog import BYTES_EACH, Backlog, QueuedAnswer

ONE = QueuedAnswer(b"x" * 50, [b"y" * 50])
SIZE = BYTES_EACH + 100


def test_answers_leave_in_order_as_far_as_there_is_room() -> None:
    backlog: Backlog[str] = Backlog(10 * SIZE, 100 * SIZE)
    for name in ("a", "b"):
        for i in range(3):
            assert backlog.put(name, QueuedAnswer(b"%d" % i, ()))
    left: list[tuple[str, bytes]] = []
    room = {"a": 2, "b": 9}

    def send(client: str, answer: QueuedAnswer) -> bool:
        room[client] -= 1
        if room[client] >= 0:
            left.append((client, answer.header))
        return room[client] >= 0

    assert backlog.flush(send, 100) == 5
    assert left == [("a", b"0"), ("a", b"1"), ("b", b"0"), ("b", b"1"), ("b", b"2")]
    assert ("a" in backlog, "b" in backlog, backlog.count) == (True, False, 1)
    backlog.check()


def test_what_finds_no_room_is_refused_by_client_and_in_all() -> None:
    backlog: Backlog[str] = Backlog(2 * SIZE, 3 * SIZE)
    assert [backlog.put("a", ONE) for _ in range(3)] == [True, True, False]
    assert [backlog.put("b", ONE) for _ in range(2)] == [True, False]
    assert ("c" in backlog, backlog.put("c", ONE), "c" in backlog) == (False, False, False)
    assert backlog.flush(lambda client, _: client == "b", 100) == 1
    assert [backlog.put("b", ONE) for _ in range(2)] == [True, False]
    backlog.check()


def test_no_more_than_so_many_leave_at_once_and_every_client_has_its_turn() -> None:
    backlog: Backlog[str] = Backlog(100 * SIZE, 100 * SIZE)
    for name in ("a", "b"):
        for _ in range(5):
            backlog.put(name, ONE)
    turns: list[str] = []
    while backlog.count:
        assert backlog.flush(lambda client, _: not turns.append(client), 2) == 2
    assert turns == ["a", "a", "b", "b", "a", "a", "b", "b", "a", "b"]


def test_the_counts_hold_whatever_comes_and_leaves() -> None:
    rng = random.Random(0)
    backlog: Backlog[int] = Backlog(20_000, 50_000)
    for _ in range(2_000):
        if rng.random() < 0.7:
            backlog.put(rng.randrange(5), QueuedAnswer(bytes(rng.randrange(2_000)), [bytes(rng.randrange(2_000))]))
        else:
            backlog.flush(lambda *_: rng.random() < 0.8, rng.randrange(1, 20))
        backlog.check()
