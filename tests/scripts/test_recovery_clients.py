"""scripts/rigs/recovery_clients.py: how long an outage is, from what clients saw."""

import pytest

from scripts.rigs.recovery_clients import OK, Asked, Outage, Path, outage

KILLED_S = 10.0


def path(*asked: tuple[float, float, str]) -> Path:
    """A client's requests: (sent, seconds until answered, outcome)."""
    return Path("m", 0.1, [Asked(sent_s, sent_s + took_s, outcome) for sent_s, took_s, outcome in asked])


@pytest.mark.parametrize(
    ("asked", "seconds", "lost"),
    [
        ([(10.5, 0.25, OK), (11.0, 0.125, OK)], 0.25, 0),  # nothing failed: the longest wait
        ([(10.5, 0.25, "x"), (11.0, 0.5, OK), (11.5, 0.125, OK)], 1.5, 1),
        ([(10.5, 0.25, OK), (11.0, 0.25, "x"), (12.0, 0.25, OK)], 2.25, 1),  # ok in between does not count
        ([(9.5, 1.0, "x"), (10.5, 0.25, OK)], 0.25, 1),  # in flight when it died: lost, and no outage by itself
        ([(9.0, 0.5, "x"), (10.5, 0.25, OK)], 0.25, 0),  # before it died
        ([(10.5, 0.25, OK), (11.0, 0.25, "x")], None, 1),  # never back
    ],
)
def test_an_outage_lasts_until_nothing_fails_any_more(
    asked: list[tuple[float, float, str]], seconds: float | None, lost: int
) -> None:
    found = outage([path(*asked)], KILLED_S)
    assert (found.seconds, sum(found.lost.values())) == (seconds, lost)


@pytest.mark.parametrize(
    ("asked", "pending", "now", "well"),
    [
        ([(10.5, 0.25, OK)], [], 11.0, True),
        ([(10.5, 0.25, OK)], [], 10.99, False),  # not for a second yet
        ([], [], 12.0, False),  # nothing has been answered since
        ([(9.5, 0.25, OK)], [10.0], 12.0, False),  # nobody answers
        ([(10.5, 0.25, OK)], [10.5], 12.0, False),  # one hangs, and may fail yet
        ([(10.5, 0.25, OK)], [9.0, 11.75], 12.0, True),
        ([(10.5, 0.25, "x"), (11.0, 0.25, OK)], [], 12.0, False),
        ([(10.5, 0.25, "x"), (11.0, 0.25, OK)], [], 12.25, True),
        ([(10.5, 0.25, "x")], [], 20.0, False),
    ],
)
def test_all_is_well_when_answers_come_and_none_has_failed_for_a_second(
    asked: list[tuple[float, float, str]], pending: list[float], now: float, well: bool
) -> None:
    client = path(*asked)
    client.pending.update(pending)
    assert client.is_well(KILLED_S, now) == well


def test_the_outage_of_several_paths_is_the_longest() -> None:
    quick, slow = path((10.5, 0.25, OK)), path((10.25, 0.25, "x"), (11.0, 0.5, OK))
    assert outage([quick, slow], KILLED_S) == Outage(1.5, 3, {"x": 1})
    never = path((10.5, 0.25, "y"))
    assert outage([quick, slow, never], KILLED_S).seconds is None
