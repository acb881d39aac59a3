"""Clients that give up what they send, so that nobody finds out: they are found, and nobody else in their place."""

import pytest

from controller.core.isolation.suspects import CALM_S
from mesh.codes import ActionCode, RequestOutcome
from tests.controller.core.controller_builders import TEN_MS, Shard
from tests.controller.core.isolation.poisoned_mesh import PoisonedMesh

SENDS_BAD, GIVES_UP = 7, 500  # clients; the second is sound


class Rounds:
    """Twenty sound requests every 0.3 s, beside what client 7 sends, and gives up at once if it is bad."""

    def __init__(self, *, contained: bool) -> None:
        self.mesh = PoisonedMesh(4, batch_max=32, contained=contained)
        self.sound: set[int] = set()
        self.number = 0

    def send(self, count: int, client: int | None = None) -> list[int]:
        """So many requests; each of a client of its own, if not said. Returns their numbers."""
        numbers = list(range(self.number + 1, self.number + 1 + count))
        self.number += count
        self.mesh.submit(numbers, budget_s=2.0, client=lambda number: client or 1000 + number % 50)
        return numbers

    def play(self, sent: str) -> None:
        """`sent` by client 7: each K a request that is bad, each S one that is not."""
        self.sound.update(self.send(10))
        gone = []
        for kind in sent:
            (number,) = self.send(1, SENDS_BAD)
            if kind == "K":
                self.bad.add(number)
                gone.append(number)
        gone += self.send(1, GIVES_UP)
        self.sound.update(self.send(1, GIVES_UP))
        self.sound.update(self.send(10))
        self.mesh.run(0.002)
        for number in gone:
            self.mesh.cancel(number)
        self.mesh.run(0.298)

    @property
    def bad(self) -> set[int]:
        return self.mesh.deadly

    def quarantined(self) -> set[int]:
        """The clients of which operators were told that they are refused."""
        notices = self.mesh.mesh.scheduler.isolation.take_notices()
        return {notice.client for notice in notices if notice.event == "quarantined_client"}


@pytest.mark.parametrize("contained", [True, False])
@pytest.mark.parametrize("rounds", [("K",), ("KS",), ("SKS",), ("KKSS",), ("K", "S"), ("K", "S", "S"), ("KS", "", "S")])
def test_a_client_that_gives_up_what_ends_processes_is_refused_soon_whatever_it_sends_beside(
    contained: bool, rounds: tuple[str, ...]
) -> None:
    at = Rounds(contained=contained)
    for number in range(60):
        at.play(rounds[number % len(rounds)])
    at.mesh.run(3.0)
    assert len(at.mesh.deaths) <= 8, "of 20 and more"
    assert at.sound <= at.mesh.told("ok")
    assert at.quarantined() == {SENDS_BAD}


def test_after_some_minutes_in_which_nothing_died_a_client_that_gave_up_is_cleared_as_before() -> None:
    at = Rounds(contained=True)
    at.play("K")
    at.mesh.run(CALM_S + 70.0)
    at.play("S")
    at.play("K")
    at.play("S")
    at.sound.update(at.send(3, SENDS_BAD))
    at.mesh.run(0.1)
    assert at.mesh.executed[-1] == tuple(sorted(at.sound))[-3:]
    assert (len(at.mesh.deaths), at.quarantined()) == (2, set())


@pytest.mark.parametrize("outcome", [RequestOutcome.CANCELLED, RequestOutcome.TIMED_OUT])
def test_many_whom_hangs_kept_waiting_are_cleared_by_their_next_batch_each_time(outcome: RequestOutcome) -> None:
    """Each of three hangs takes eight clients along: they are executed together again, not each by itself."""
    shard = Shard().serve({"m:1": TEN_MS})
    action, now = 0, 100.0
    for _ in range(3):
        for number in range(1, 9):
            shard.submit(number, now=now, budget_s=0.5, client=number)
        shard.wake(now)
        action += 1
        for number in range(1, 9):
            shard.scheduler.cancel("f", number, outcome, now=now + 0.5)
        assert shard.result(action, now=now + 2.0, code=ActionCode.CONTAINER_DIED) == []
        now += 2.0
        for number in range(1, 9):
            shard.submit(number, now=now, budget_s=5.0, client=number)
        while orders := shard.wake(now):
            action += len(orders)
            for order in orders:
                shard.ran(int(order.split("#")[1].split()[0]), begin_s=now, duration_s=0.01)
            now += 0.02
        for number in range(1, 9):
            shard.submit(number, now=now, budget_s=5.0, client=number)
        (order,) = shard.wake(now)
        assert " x8 " in order
        action += 1
        shard.ran(action, begin_s=now, duration_s=0.01)
        now += 0.1
