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


def test_the_outage_of_several_paths_is_the_longest() -> None:
    quick, slow = path((10.5, 0.25, OK)), path((10.25, 0.25, "x"), (11.0, 0.5, OK))
    assert outage([quick, slow], KILLED_S) == Outage(1.5, 3, {"x": 1})
    never = path((10.5, 0.25, "y"))
    assert outage([quick, slow, never], KILLED_S).seconds is None
