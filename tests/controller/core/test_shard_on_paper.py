"""The scheduler and its workers' lanes together, on a virtual clock, with chance deciding how long everything takes."""

from typing import Any

import pytest

from gearmesh.simulation.workers import DEPTH
from gpu_worker.core.jobs import Done, Effect, Phase, Report, Servable, StartPhase
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.pages import PageTable
from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared
from tests.controller.core.mesh_on_paper import BEGIN_S, Chances, Story

REQUESTS = 150
FOR_S = 1.0


def play(seed: int, chances: Chances, **shape: Any) -> Story:
    """A second of requests, with what chance has in store; then all that is under way ends."""
    story = Story(seed, chances, **shape)
    story.run(BEGIN_S + 0.5)  # prepared, and loaded as far as there is room
    rng = story.rng
    story.arrive(REQUESTS, FOR_S)
    for call, times in (
        (story.kill, chances.kills),
        (story.relink, chances.relinks),
        (story.drop, chances.drops),
        (lambda: story.lose_frontend(rng.choice("fg")), chances.lost_frontends),
        (lambda: story.mesh.want([ref for ref in story.refs if rng.random() < 0.7]), chances.churn),
    ):
        for _ in range(times):
            story.later(rng.uniform(0.0, FOR_S), call)
    story.run(story.now + FOR_S)
    story.mesh.want(story.refs)
    story.run_out()
    return story


def assert_all_has_ended(story: Story) -> None:
    assert story.mesh.scheduler.open_requests == 0
    assert story.ordered() == 0
    assert all(worker.lanes.idle for worker in story.mesh.workers.values())


def assert_everybody_was_answered(story: Story) -> None:
    """The first word counts, as it does at a frontend; there may be a second one only where something was lost."""
    for key, heard in story.outcomes.items():
        if not heard.given_up:
            assert heard.outputs + len(heard.refusals) >= 1, key
        assert len(heard.refusals) <= heard.attempts, (key, heard)


def assert_everybody_was_answered_once(story: Story) -> None:
    for key, heard in story.outcomes.items():
        assert heard.outputs + len(heard.refusals) <= 1, (key, heard)
    assert_everybody_was_answered(story)


def assert_page_counts_agree(story: Story) -> None:
    """What the controller believes of every worker's memory is so."""
    for worker in story.mesh.workers.values():
        residency = story.mesh.scheduler.state.devices[worker.name].residency
        assert residency.free == worker.lanes.table.free, worker.name
        assert set(residency.models) == set(worker.lanes.table.resident()), worker.name
        assert all(place.loading is None for place in residency.models.values()), worker.name


@pytest.mark.parametrize("seed", range(8))
def test_every_request_is_answered_exactly_once_while_nothing_is_lost(seed: int) -> None:
    story = play(seed, Chances())
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)
    assert_page_counts_agree(story)


@pytest.mark.parametrize("seed", range(4))
def test_every_request_is_answered_exactly_once_though_durations_are_wild(seed: int) -> None:
    story = play(seed, Chances(noise=0.7, outlier=0.05, clock_error_s=2e-3))
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)
    assert_page_counts_agree(story)


@pytest.mark.parametrize(("seed", "near"), [(seed, near) for seed in range(3) for near in (False, True)])
def test_every_request_is_answered_exactly_once_though_frontends_keep_inputs(seed: int, near: bool) -> None:
    story = play(seed, Chances(kept=0.7, cancels=0.1), frontend_host="simulated" if near else "elsewhere")
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)
    assert_page_counts_agree(story)
    assert sum(heard.outputs for heard in story.outcomes.values()) > 0.5 * REQUESTS


@pytest.mark.parametrize("seed", range(3))
def test_every_request_is_answered_exactly_once_where_memory_holds_two_models_of_eight(seed: int) -> None:
    story = play(seed, Chances(), workers=1, models=8, pages=3)
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)
    assert_page_counts_agree(story)


@pytest.mark.parametrize("seed", range(3))
def test_versions_are_measured_beside_the_work_and_served_in_the_end(seed: int) -> None:
    story = play(seed, Chances(measured=False), pages=8)
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)
    assert_page_counts_agree(story)
    assert all(len(story.mesh.scheduler.state.models[ref].ready) == len(story.mesh.workers) for ref in story.refs)


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_though_workers_die(seed: int) -> None:
    story = play(seed, Chances(kills=5))
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)
    assert_page_counts_agree(story)


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_though_links_break_and_come_back(seed: int) -> None:
    story = play(seed, Chances(relinks=6))
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)
    assert_page_counts_agree(story)


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_though_results_are_lost(seed: int) -> None:
    story = play(seed, Chances(drops=8))
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_though_frontends_come_back_and_submit_again(seed: int) -> None:
    story = play(seed, Chances(lost_frontends=10, cancels=0.1))
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)
    assert_page_counts_agree(story)


def test_most_of_what_is_given_up_before_it_begins_is_never_computed_and_all_of_it_is_counted() -> None:
    revoked = for_nobody = 0
    for seed in range(6):
        story = play(seed, Chances(cancels=0.7))
        assert_all_has_ended(story)
        assert_everybody_was_answered(story)
        assert_page_counts_agree(story)
        scheduler = story.mesh.scheduler
        assert scheduler.counters.failed_actions.keys() <= {ActionCode.LATE}
        given_up = [heard for heard in story.outcomes.values() if heard.given_up]
        executed = [heard for heard in given_up if heard.outputs]
        assert scheduler.counters.computed_for_nobody <= len(executed)
        assert scheduler.telemetry.cancelled <= len(given_up)
        revoked += scheduler.counters.revoked
        for_nobody += scheduler.counters.computed_for_nobody
    assert revoked > 0
    assert for_nobody < 0.1 * 6 * REQUESTS


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_is_answered_though_versions_come_and_go(seed: int, measured: bool) -> None:
    story = play(seed, Chances(churn=10, measured=measured))
    assert_all_has_ended(story)
    assert_everybody_was_answered_once(story)


@pytest.mark.parametrize("seed", range(8))
def test_every_request_is_answered_whatever_goes_wrong(seed: int) -> None:
    chances = Chances(
        noise=0.4, outlier=0.03, kills=3, relinks=3, drops=4, lost_frontends=4, churn=5, cancels=0.1,
        measured=seed % 2 == 0,
    )  # fmt: skip
    story = play(seed, chances)
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)


@pytest.mark.parametrize("policy", ["clockwork", "fifo"])
@pytest.mark.parametrize("seed", range(4))
def test_the_other_policies_answer_everybody_too_whatever_goes_wrong(policy: str, seed: int) -> None:
    chances = Chances(
        noise=0.4, outlier=0.03, kills=3, relinks=3, drops=4, lost_frontends=4, churn=5, cancels=0.1,
        measured=seed % 2 == 0,
    )  # fmt: skip
    story = play(seed, chances, policy=policy)
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)


def test_a_load_that_was_under_way_when_the_link_broke_does_not_keep_its_pages_for_ever() -> None:
    """Three pages, two models of two: what nobody knows to be there must not keep the other one out."""
    shard = Shard().serve({"m:1": TEN_MS, "n:1": TEN_MS}, resident=[], pages=3)
    lanes = Lanes(PageTable(3), dict(DEPTH))
    lanes.welcome(1)
    for ref in ("m:1", "n:1"):
        lanes.prepared(ref, Servable(2, 8, None, ()))
    shard.submit(1, "m:1", now=100.0)
    (order,) = shard.orders(100.0)
    (start,) = lanes.load(order.message, 1, now=100.0)

    shard.lose("w1", now=100.001)
    lanes.welcome(1)
    words = hello(
        "w1", prepared("m:1"), prepared("n:1"), pages=3, free_pages=lanes.table.free, resident=lanes.table.resident()
    )
    shard.join(words, now=100.001)
    effects = lanes.finished(Phase.LOAD, start.job, Done(100.0, 100.002, 0.002), now=100.002)
    shard.submit(2, "n:1", now=100.002, budget_s=1.0)
    now = 100.002
    while now < 100.9:
        for effect in effects:
            if isinstance(effect, Report):
                shard.checked(shard.scheduler.result("w1", effect.result, now=now))
        effects = []
        for order in shard.orders(now):
            message = order.message
            if isinstance(message, wire.Load | wire.Unload | wire.Infer):
                effects += run_at_once(lanes, message, now)
        now += 0.02
    assert lanes.table.is_loaded("n:1")


def run_at_once(lanes: Lanes, message: wire.Load | wire.Unload | wire.Infer, now: float) -> list[Effect]:
    """The order is taken, and all that it starts is over at once."""
    take = {wire.Load: lanes.load, wire.Unload: lanes.unload, wire.Infer: lanes.infer}[type(message)]
    effects = take(message, 1, now=now)
    for effect in effects:
        if isinstance(effect, StartPhase):
            effects += lanes.finished(effect.phase, effect.job, Done(now, now, 0.0), now=now)
    return effects


def test_batches_form_under_load() -> None:
    """One device, one model, more requests than it could take one by one."""
    story = Story(1, Chances(noise=0.02, outlier=0.0), workers=1, models=1)
    story.run(BEGIN_S + 0.5)
    story.arrive(400, 0.4)
    story.run_out()
    rows = [batch for _, batch in story.executed]
    assert sum(rows) / len(rows) > 2.0
    assert_everybody_was_answered_once(story)


def test_the_same_seed_gives_the_same_story() -> None:
    first, second = (play(3, Chances(kills=2, relinks=2)) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert first.executed == second.executed


@pytest.mark.parametrize("policy", ["atc", "fifo", "clockwork"])
@pytest.mark.parametrize("seed", range(4))
def test_poison_is_never_answered_and_everybody_else_is_whatever_goes_wrong_beside(seed: int, policy: str) -> None:
    chances = Chances(
        noise=0.4, kills=1, relinks=2, lost_frontends=2, churn=4, cancels=0.1, poison=0.06, deadly=0.02,
        measured=seed % 2 == 0,
    )  # fmt: skip
    story = play(seed, chances, policy=policy)
    assert_all_has_ended(story)
    assert_everybody_was_answered(story)
    assert story.poison
    assert not any(story.outcomes[key].outputs for key in story.poison | story.deadly)
    tried = sum(story.outcomes[key].attempts for key in story.deadly)
    assert story.deaths <= 2 * tried
