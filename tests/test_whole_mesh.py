"""Frontends, controller and workers together: everybody is answered once, and every count agrees with every other."""

import gc
from dataclasses import replace

import pytest

from tests.whole_mesh import GONE, Troubles, WholeStory, play_whole

ALL = Troubles(
    noise=0.4, outlier=0.03, kills=2, relinks=2, drops=3, churn=3, cancels=0.15, gone=0.03,
    poison=0.04, deadly=0.01, early=True,
)  # fmt: skip


def assert_at_rest(story: WholeStory) -> None:
    """Everybody was told once, nothing is left, and nobody keeps what was asked."""
    assert story.mesh.scheduler.open_requests == 0
    assert story.ordered() == 0
    assert all(worker.lanes.idle for worker in story.mesh.workers.values())
    told = {(name, *key) for name, at in story.frontends.items() for key in at.told}
    assert told == story.asked.keys()
    for frontend in story.frontends.values():
        assert (len(frontend.table), len(frontend.early), frontend.table.bytes_held) == (0, 0, 0)
    for (name, client, number), call in story.asked.items():
        outcome = story.frontends[name].told[client, number]
        assert outcome in ("ok", "rejected", "timed_out", "failed", "cancelled", GONE)
        assert call.flight is None
    gc.collect()
    assert not [each for each in story.inputs if each() is not None], "somebody keeps inputs"


def assert_counts_agree(story: WholeStory) -> None:
    """What clients saw is what frontends count."""
    assert story.counted() == story.seen()
    assert sum(story.seen().values()) == sum(call.ask is None for call in story.asked.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_log_and_the_counts_agree_whatever_goes_wrong(seed: int) -> None:
    story = play_whole(seed, ALL)
    assert_at_rest(story)
    assert_counts_agree(story)
    assert story.logged() == story.expected_in_log()


@pytest.mark.parametrize("seed", range(4))
def test_where_controllers_die_and_links_break_everybody_is_told_and_counted_all_the_same(seed: int) -> None:
    """But not logged: a controller takes its lines along, or does not know what came of what it had."""
    story = play_whole(seed, replace(ALL, lost_controllers=2, lost_frontends=2))
    assert_at_rest(story)
    assert_counts_agree(story)


@pytest.mark.parametrize("seed", range(3))
def test_joined_and_split_requests_of_clients_that_leave_are_counted_once_each(seed: int) -> None:
    troubles = replace(ALL, joined=0.95, asks=0.3, cancels=0.4, split=0.3, deadly=0.03)
    story = play_whole(seed, troubles, models=1, requests=300, for_s=0.5)
    assert_at_rest(story)
    assert_counts_agree(story)
    assert story.logged() == story.expected_in_log()
    assert sum(frontend.cache.coalesced for frontend in story.frontends.values()) > 5


@pytest.mark.parametrize(("seed", "workers", "kills"), [(1007, 2, 2), (1030, 2, 2), (1008, 1, 5)])
def test_under_clockwork_what_waits_anew_when_its_last_device_has_gone_neither_ends_nor_occupies_the_controller(
    seed: int, workers: int, kills: int
) -> None:
    troubles = replace(ALL, kills=kills, poison=0.1 if kills == 5 else ALL.poison)
    story = play_whole(seed, troubles, policy="clockwork", workers=workers, models=2 if workers == 1 else 5)
    assert_at_rest(story)
    assert_counts_agree(story)
    assert story.logged() == story.expected_in_log()


@pytest.mark.parametrize("policy", ["atc", "clockwork", "fifo"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_policy_all_comes_to_rest_with_the_pages_that_workers_count(policy: str, seed: int) -> None:
    troubles = replace(ALL, relinks=6, drops=6, churn=6, lost_controllers=seed % 2)
    story = play_whole(seed, troubles, policy=policy, workers=1 + seed % 3, pages=(3, 5, 9)[seed % 3])
    assert_at_rest(story)
    assert_counts_agree(story)
    for name, worker in story.mesh.workers.items():
        device = story.mesh.scheduler.state.devices[name]
        assert device.residency.free == worker.lanes.table.free, name
        assert set(device.residency.models) == set(worker.lanes.table.resident()), name
