"""Clients that end processes and come back as new ones: those that are known to be good are served."""

import pytest

from controller.core.isolation.strangers import (
    CALM_S,
    DOUBTFUL_STRIKE,
    KNOWN_MAX,
    PAUSE_S,
    PAUSE_S_MAX,
    STRIKE,
    STRIKERS_MAX,
    STRIKES_MIN,
    Strangers,
)
from tests.controller.core.isolation.poisoned_mesh import PoisonedMesh

GOOD, NEW = ("f", 7), ("f", 9)


@pytest.mark.parametrize(("replicas", "share"), [(1, 0.6), (2, 0.8), (4, 0.9)])
def test_a_client_that_comes_back_under_another_name_each_time_costs_few_processes(replicas: int, share: float) -> None:
    mesh = PoisonedMesh(replicas, batch_max=16, contained=True)
    mesh.submit([1])
    mesh.run(0.2)
    number, honest = 10, set()
    for _ in range(300):
        for client in (1, 2, 3, 4):
            number += 1
            honest.add(number)
            mesh.submit([number], client=lambda _, client=client: client)  # type: ignore[misc]
        number += 1
        mesh.deadly.add(number)
        mesh.submit([number], client=lambda n: 10_000 + n)
        mesh.run(0.05)
    mesh.run(1.0)
    assert len(mesh.told("ok") & honest) > share * len(honest)
    assert len(mesh.deaths) < 25


def struck_out(now: float = 100.0) -> Strangers:
    """Strangers are refused; GOOD was served before."""
    strangers = Strangers()
    clients = STRIKES_MIN // STRIKE
    for i in range(clients):
        assert strangers.struck(("f", 100 + i), now, surely=True) is (i == clients - 1)
        strangers.served([GOOD])
    return strangers


def test_nobody_is_refused_before_several_clients_have_ended_processes() -> None:
    strangers = Strangers()
    assert not strangers
    count = STRIKES_MIN // STRIKE - 1
    assert not any(strangers.struck(("f", 1 + i % count), 100.0, surely=True) for i in range(20 * count))
    assert not strangers.refuses(NEW, 100.0)
    doubtful = Strangers()
    told = [doubtful.struck(("f", i), 100.0, surely=False) for i in range(STRIKES_MIN // DOUBTFUL_STRIKE)]
    assert told == [False] * (len(told) - 1) + [True]


def test_strangers_are_refused_for_growing_pauses_and_who_was_served_is_not() -> None:
    strangers, now = struck_out(), 100.0
    pauses = []
    for i in range(9):
        assert strangers.refuses(NEW, now)
        assert not strangers.refuses(GOOD, now)
        assert not strangers.refuses(("f", 0), now), "who asks is not known"
        pauses.append(strangers.refused_until_s - now)
        now = strangers.refused_until_s
        assert not strangers.refuses(NEW, now)
        strangers.struck(("f", 200 + i), now, surely=True)
    assert pauses == [min(PAUSE_S_MAX, PAUSE_S * 2**i) for i in range(9)]


def test_who_was_known_and_ends_a_process_is_known_no_more() -> None:
    strangers = struck_out()
    strangers.struck(GOOD, 100.0, surely=True)
    strangers.served([GOOD])
    assert strangers.refuses(GOOD, 100.0)


def test_all_is_forgotten_in_time_and_bounded() -> None:
    strangers = struck_out()
    strangers.served(("f", 1000 + i) for i in range(2 * KNOWN_MAX))
    assert strangers.refuses(GOOD, 100.0), "others were served since"
    assert not strangers.refuses(("f", 1000 + 2 * KNOWN_MAX - 1), 100.0)
    for i in range(2 * STRIKERS_MAX):
        strangers.struck(("f", 10 + i), 101.0, surely=True)
    strangers.forget(101.0 + CALM_S - 1)
    assert strangers
    strangers.forget(101.0 + CALM_S)
    assert not strangers
    assert not strangers.struck(NEW, 101.0 + CALM_S, surely=True)
