"""A request that ends its process: everybody in its batch is tried once more, alone, and who repeats it is refused."""

import pytest

from controller.core.isolation.suspects import CALM_S, PAUSE_S, PAUSE_S_MAX, SUSPECT_S
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import TEN_MS, Shard, one, woken
from tests.controller.core.isolation.poisoned_mesh import REF, PoisonedMesh


@pytest.mark.parametrize("contained", [True, False])
@pytest.mark.parametrize("deadly", [(1,), (35,), (70,)])
def test_one_request_that_ends_processes_costs_two_of_nine_and_everybody_else_is_served(
    contained: bool, deadly: tuple[int, ...]
) -> None:
    mesh = PoisonedMesh(9, batch_max=70, contained=contained)
    mesh.submit([1000], client=lambda n: 1000)
    mesh.run(0.2)
    mesh.deadly.update(deadly)
    mesh.submit(range(1, 71), budget_s=2.0)
    mesh.run(3.0)
    assert mesh.told("ok") == set(range(1, 71)) - set(deadly) | {1000}
    assert len(mesh.deaths) <= 2 * len(deadly)
    assert mesh.told("container_died" if contained else "worker_lost") == set(deadly)


def test_three_such_requests_of_three_clients_cost_two_processes_each_at_most() -> None:
    mesh = PoisonedMesh(9, batch_max=70, contained=True)
    mesh.deadly.update((5, 6, 60))
    mesh.submit(range(1, 71), budget_s=3.0)
    mesh.run(4.0)
    assert len(mesh.deaths) <= 6
    assert mesh.told("ok") == set(range(1, 71)) - {5, 6, 60}


def test_a_lone_replica_is_waited_for_and_then_everybody_sound_is_served() -> None:
    mesh = PoisonedMesh(1, batch_max=8, contained=True)
    mesh.deadly.add(3)
    mesh.submit(range(1, 9), budget_s=3.0)
    mesh.run(4.0)
    assert mesh.told("ok") == set(range(1, 9)) - {3}
    assert mesh.told("container_died") == {3}
    assert len(mesh.deaths) == 2
    assert "its code ended" not in mesh.messages[3]


def test_of_a_batch_that_ended_its_process_what_there_is_no_time_for_is_told_nothing_of_it() -> None:
    mesh = PoisonedMesh(1, batch_max=8, contained=True)
    mesh.deadly.add(3)
    mesh.submit(range(1, 9), budget_s=0.2)
    mesh.run(1.0)
    assert set(mesh.answers.values()) == {"batch_failed"}


@pytest.mark.parametrize("code", [ActionCode.CONTAINER_DIED, ActionCode.DEVICE_LOST, ActionCode.LOST])
def test_a_request_that_was_there_twice_when_a_process_died_is_not_tried_a_third_time(code: str) -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2", "w3"))
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=9.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    shard.result(1, now=100.1, code=code)
    sent = shard.wake(100.1)
    assert {order.partition(" m:1 ")[2] for order in sent} == {"x1 f/1", "x1 f/2"}
    workers = [order.partition(":")[0] for order in sent]
    told = [shard.result(2 + i, now=100.2, worker=worker, code=code) for i, worker in enumerate(workers)]
    assert sorted(order for orders in told for order in orders if "failed" in order) == [
        f"f: 1 failed {code}", f"f: 2 failed {code}"
    ]  # fmt: skip
    assert shard.scheduler.open_requests == 0


def test_what_waited_behind_is_planned_again_as_if_nothing_had_happened() -> None:
    shard = Shard(lead_ms=100.0).serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    for now, numbers in ((100.0, (1, 2)), (100.001, (3, 4))):
        for number in numbers:
            shard.submit(number, now=now, budget_s=1.0)
        shard.wake(now)
    assert {a.id: d.worker for d in shard.state.devices.values() for a in d.actions.values()} == {1: "w1", 2: "w1"}
    shard.result(1, now=100.01, code=ActionCode.DEVICE_LOST)
    shard.result(2, now=100.01, code=ActionCode.DEVICE_LOST)
    orders, now = [], 100.01
    for action in (3, 4, 5):
        orders += shard.wake(now)
        shard.ran(action, worker="w2", begin_s=now, duration_s=0.01)
        now += 0.02
    assert orders == ["w2: infer #3 m:1 x1 f/1", "w2: infer #4 m:1 x1 f/2", "w2: infer #5 m:1 x2 f/3 f/4"]


def test_a_worker_that_said_goodbye_and_goes_was_ended_by_nobody() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.leave("w1")
    shard.lose("w1", now=100.005)
    assert shard.wake(100.005) == ["w2: infer #2 m:1 x2 f/1 f/2"]


@pytest.mark.parametrize("silent_s", [0.4, 0.6])
def test_a_request_that_was_sent_to_two_workers_of_a_host_that_is_gone_has_ended_neither(silent_s: float) -> None:
    """The second was missed a little later than the first: what it got in between, it never had."""
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2", "w3"))
    shard.submit(1, now=99.0)
    assert shard.wake(99.0) == ["w1: infer #1 m:1 x1 f/1"]
    shard.ran(1, begin_s=99.0, duration_s=0.01)  # it works
    shard.submit(7, now=100.0, budget_s=9.0, client=7)
    (first,) = shard.wake(100.0)
    gone = first.partition(":")[0]
    for worker in ("w1", "w2", "w3"):
        shard.scheduler.clock(worker, 0.0, 99.9)
    shard.lose(gone, now=99.9 + silent_s)
    (second,) = shard.wake(99.9 + silent_s)
    assert shard.lose(second.partition(":")[0], now=100.6) == (["f: 7 failed worker_lost"] if silent_s < 0.5 else [])
    if silent_s > 0.5:
        (third,) = shard.wake(100.6)
        assert third.endswith("infer #4 m:1 x1 f/7")
        assert shard.scheduler.isolation.quarantines == 0
        assert shard.scheduler.isolation.take_notices() == []


def test_a_batch_whose_weights_are_not_there_yet_cannot_have_ended_its_worker() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"), resident=[])
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 m:1"]
    assert "w1: infer #2 m:1 x2 f/1 f/2" in woken(shard, until=100.001)
    shard.lose("w1", now=100.002)
    assert shard.wake(100.002) == ["w2: load #3 m:1"]
    assert "w2: infer #4 m:1 x2 f/1 f/2" in woken(shard, until=100.01)


def killed(shard: Shard, number: int, action: int, now: float) -> list[str]:
    """Client 7's request is sent alone, and ends its process; the worker lives, as a container's does."""
    told = shard.submit(number, now=now, budget_s=1.0, client=7, tensors=(b"%04d" % number,))
    if told:
        return told
    assert shard.wake(now) == [f"w1: infer #{action} m:1 x1 f/{number}"]
    return shard.result(action, now=now + 0.01, code=ActionCode.CONTAINER_DIED)


def repeated() -> Shard:
    """A request that ended its process twice has failed; the version works for others."""
    shard = one()
    shard.submit(1, now=100.0, client=1)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    assert killed(shard, 2, 2, 100.1) == []
    assert shard.wake(100.12) == ["w1: infer #3 m:1 x1 f/2"]
    assert shard.result(3, now=100.13, code=ActionCode.CONTAINER_DIED) == ["f: 2 failed container_died"]
    return shard


def test_who_repeats_it_is_refused_for_pauses_that_grow_and_others_are_served() -> None:
    shard = repeated()
    now, action, pause_s = 100.13, 3, PAUSE_S
    for number in range(10, 20):
        assert killed(shard, 100 + number, 0, now + 0.9 * pause_s) == [f"f: {100 + number} rejected quarantined"]
        shard.submit(200 + number, now=now + 0.9 * pause_s, client=1)
        action += 1
        assert shard.wake(now + 0.9 * pause_s) == [f"w1: infer #{action} m:1 x1 f/{200 + number}"]
        shard.ran(action, begin_s=now + 0.9 * pause_s, duration_s=0.01)
        now += pause_s + 0.05
        action += 1
        assert killed(shard, number, action, now) == [f"f: {number} failed container_died"]
        now += 0.01
        pause_s = min(PAUSE_S_MAX, 2 * pause_s)


def test_after_some_minutes_without_another_death_it_is_a_client_like_others() -> None:
    shard = repeated()
    now = 100.13 + CALM_S + SUSPECT_S
    shard.submit(50, now=now, client=7)
    shard.submit(51, now=now, client=8)
    assert shard.wake(now) == ["w1: infer #4 m:1 x2 f/50 f/51"]


def test_the_very_input_is_refused_whoever_sends_it_and_a_refusal_says_for_how_long() -> None:
    shard = repeated()
    assert shard.submit(60, now=100.5, client=9, tensors=(b"0002",)) == ["f: 60 rejected quarantined"]
    assert shard.submit(61, now=100.5, client=9, tensors=(b"0003",)) == []
    assert shard.submit(62, now=101.2, client=9, tensors=(b"0002",)) == []


def test_what_a_refused_client_had_waiting_is_refused_too() -> None:
    shard = one()
    shard.submit(1, now=100.0, client=1)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    for number in (2, 3):
        shard.submit(number, now=100.1, budget_s=1.0, client=7)
    shard.wake(100.1)
    assert shard.result(2, now=100.2, code=ActionCode.CONTAINER_DIED) == []
    assert shard.wake(100.2) == ["w1: infer #3 m:1 x1 f/2"]
    shard.submit(4, now=100.201, budget_s=1.0, client=7)
    shard.submit(5, now=100.201, budget_s=1.0, client=8)
    shard.result(3, now=100.21, code=ActionCode.CONTAINER_DIED)
    orders = shard.wake(100.21)
    assert orders[0] == "f: 3 rejected quarantined"
    assert {*orders[1:]} == {"f: 4 rejected quarantined", "w1: infer #4 m:1 x1 f/5"}


def test_a_client_that_ends_a_lone_replica_is_refused_though_nobody_else_is_served_between_its_restarts() -> None:
    """The routing table changes when a container's code dies: the version that nobody can serve then is forgotten."""
    mesh = PoisonedMesh(1, batch_max=8, contained=True)
    mesh.submit([1000], client=lambda n: 1000)
    mesh.run(0.2)
    mesh.deadly.update(range(1, 100))
    for number in range(1, 61):
        mesh.submit([number], client=lambda n: 7)
        mesh.run(0.1)
        mesh.mesh.scheduler.want([REF], [REF], now=mesh.mesh.now)
    assert "quarantined" in mesh.answers.values()
    assert len(mesh.deaths) <= 4  # the first two, then one a pause: of 1 s, of 2 s


def test_a_hang_that_nobody_waited_for_counts_for_whoever_was_alone_in_it() -> None:
    shard = one()
    for action, now in ((1, 100.0), (3, 104.0)):
        shard.submit(action, now=now, client=1)
        shard.wake(now)
        shard.ran(action, begin_s=now, duration_s=0.01)
        shard.submit(action + 1, now=now + 1.0, budget_s=0.1, client=7)
        assert shard.wake(now + 1.0) == [f"w1: infer #{action + 1} m:1 x1 f/{action + 1}"]
        shard.cancel(action + 1, now=now + 1.1)
        assert shard.result(action + 1, now=now + 3.0, code=ActionCode.CONTAINER_DIED) == []
    events = [(notice.event, notice.client) for notice in shard.scheduler.isolation.take_notices()]
    assert events == [("suspect_client", 7), ("quarantined_client", 7)]
    assert shard.submit(9, now=107.1, client=7) == ["f: 9 rejected quarantined"]
