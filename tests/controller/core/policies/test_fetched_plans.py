"""The default policy's batches where some inputs have to be fetched first."""

import random
from collections.abc import Sequence

import pytest

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.estimation.fetching import NOTHING
from controller.core.policies.base import Batch
from controller.core.policies.by_extents import fetched_before_s
from controller.core.queues import Request
from mesh import wire
from mesh.codes import ActionKind
from tests.controller.core.controller_builders import request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World, heads
from tests.controller.core.policies.test_sized_plans import LengthWorld, seconds

HERE = wire.Slot(segment="1.2.ab", offset=0, generation=1)
MB = 1_000_000


def network(device: RemoteDevice, *, fetch_s: float = 0.0, megabyte_s: float = 0.25) -> None:
    """Each fetch takes so long, and each megabyte of it."""
    for estimate in (device.fetch.here, device.fetch.elsewhere):
        estimate.batch_s, estimate.megabyte_s, estimate.margin.value_s = fetch_s, megabyte_s, 0.0


class FetchingWorld(World):
    """One device, or more, without margins; EXEC of b rows takes 0.5 + 0.5 x b s, and a megabyte a quarter of one."""

    def __init__(self, *, workers: Sequence[str] = ("w1",), megabyte_s: float = 0.25) -> None:
        super().__init__({"m:1": SECONDS}, workers=workers)
        for device in self.state.devices.values():
            network(device, megabyte_s=megabyte_s)
            device.noise.value_s = 0.0

    def asks(self, *deadlines_s: float, megabytes: float = 1.0, rows: int = 1, near: bool = False) -> list[Request]:
        """Requests wait whose inputs their frontend keeps: on the device's host in a slot, or elsewhere."""
        made = []
        for deadline_s in deadlines_s:
            self._count += 1
            kept = wire.Kept(sizes=(round(megabytes * MB),), slot=HERE if near else None)
            one = request(
                self._count, rows=rows, arrived_s=NOW, deadline_s=NOW + deadline_s, kept=kept,
                host="h" if near else "elsewhere",
            )  # fmt: skip
            self.state.push(self.model(), one)
            self.state.check()
            made.append(one)
        return made

    def fetching(self, for_s: float) -> None:
        """The device fetches something until so much later."""
        self.device.fetching_until_s = NOW + for_s

    def next(self) -> Batch | None:
        return self.policy.choose(self.device, NOW)

    def chosen(self) -> list[int]:
        """Numbers of the requests of the next batch."""
        batch = self.next()
        return [] if batch is None else [one.number for one in batch.requests]


def test_a_batch_starts_when_the_inputs_of_its_own_requests_are_there() -> None:
    world = FetchingWorld()
    world.asks(*[60.0] * 8, rows=4)
    batch = world.next()
    assert batch is not None
    assert (len(batch.requests), batch.rows, batch.start_s) == (2, 8, NOW + 0.5)


def test_whoever_would_make_the_first_late_with_its_inputs_is_not_fetched_with_it() -> None:
    world = FetchingWorld()
    world.asks(2.75, megabytes=1.0)  # alone: 0.25 + 1.0; with the next: 0.5 + 1.5; with both: 0.75 + 2.0
    world.asks(60.0, 60.0, 60.0)
    batch = world.next()
    assert batch is not None
    assert (len(batch.requests), batch.start_s, batch.given_up) == (3, NOW + 0.75, [])


def test_a_head_that_is_in_time_by_itself_is_not_given_up_because_others_take_long_to_fetch() -> None:
    world = FetchingWorld()
    (head,) = world.asks(1.5)
    world.asks(*[60.0] * 7, megabytes=4.0)
    batch = world.next()
    assert batch is not None
    assert (batch.requests, batch.given_up, batch.start_s) == ([head], [], NOW + 0.25)


def test_heads_are_passed_over_for_a_larger_batch_only_if_they_would_be_late_in_it() -> None:
    world = FetchingWorld()
    (early,) = world.asks(2.2, near=True)
    (later,) = world.asks(4.5)
    others = world.asks(*[6.0] * 8)  # seven of them are in time, and eight are not: 2.0 + 4.5
    batch = world.next()
    assert batch is not None
    assert (batch.requests, batch.given_up) == ([later, *others[:4]], [early])
    assert batch.start_s == NOW + 1.25


def test_a_request_that_takes_long_to_fetch_does_not_keep_those_behind_it_from_going_with_the_first() -> None:
    world = FetchingWorld()
    world.asks(3.0)
    world.asks(60.0, megabytes=100.0)
    world.asks(61.0)
    assert world.chosen() == [1, 3]


def test_what_takes_longest_to_fetch_has_its_turn_when_it_is_the_first() -> None:
    world = FetchingWorld()
    world.asks(60.0, megabytes=100.0)
    world.asks(61.0)
    assert world.chosen() == [1, 2]


def test_near_requests_are_planned_while_others_are_fetched() -> None:
    world = FetchingWorld()
    world.asks(50.0)
    world.asks(60.0, 61.0, near=True)
    world.asks(62.0)
    world.fetching(5.0)
    batch = world.next()
    assert batch is not None
    assert ([one.number for one in batch.requests], batch.start_s, batch.given_up) == ([2, 3], NOW, [])
    assert world.policy.wake_at(NOW) == NOW + 5.0  # the others' turn


def test_far_requests_have_their_turn_in_order_of_deadline_once_nothing_is_fetched() -> None:
    world = FetchingWorld()
    world.asks(60.0, 61.0, near=True)
    world.asks(50.0)
    assert world.chosen() == [3, 1, 2]


def test_near_requests_do_not_wait_for_inputs_that_would_make_them_late() -> None:
    world = FetchingWorld()
    world.asks(1.25, near=True)
    world.asks(60.0, 61.0)
    batch = world.next()
    assert batch is not None
    assert ([one.number for one in batch.requests], batch.start_s) == ([1], NOW)


def test_where_everything_lies_on_the_device_s_host_batches_are_those_of_small_inputs() -> None:
    world, plain = FetchingWorld(), World()
    plain.device.noise.value_s = 0.0
    deadlines = [1.0, 1.1, 2.0, 4.5, 4.5, 4.6, 5.0, 5.0]
    world.asks(*deadlines, near=True)
    plain.waits(*[NOW + deadline_s for deadline_s in deadlines])
    assert world.choose() == plain.choose()


@pytest.mark.parametrize("seed", range(40))
def test_if_fetching_takes_no_time_batches_are_those_of_small_inputs(seed: int) -> None:
    rng = random.Random(seed)
    world, plain = FetchingWorld(megabyte_s=0.0), World()
    plain.device.noise.value_s = 0.0
    many = rng.random() < 0.3
    for _ in range(rng.randrange(1, 30)):
        deadline_s = rng.uniform(0.3, rng.choice((3.0, 9.0)))
        rows = rng.choice((1, 1, 2, 3)) if many else 1
        if deadline_s >= 0.5 + 0.5 * rows or deadline_s < 1.0:  # who could never be in time would be tried by `plain`
            world.asks(deadline_s, rows=rows)
            plain.waits(NOW + deadline_s, rows=rows)
    assert world.choose() == plain.choose()


@pytest.mark.parametrize("seed", range(150))
def test_whatever_waits_a_batch_starts_when_all_is_there_and_nobody_in_it_is_late(seed: int) -> None:
    rng = random.Random(seed)
    workers = ("w1", "w2") if seed % 3 == 0 else ("w1",)
    world = FetchingWorld(workers=workers, megabyte_s=rng.choice((0.01, 0.25, 1.0)))
    device, rows = world.device, rng.choice(((1,), (1,), (1, 2, 4)))
    for _ in range(rng.randrange(1, 25)):
        world.asks(
            rng.uniform(0.5, rng.choice((3.0, 12.0))), megabytes=rng.choice((0.1, 1.0, 3.0)),
            rows=rng.choice(rows), near=rng.random() < 0.4,
        )  # fmt: skip
    if seed % 2:
        world.fetching(rng.uniform(0.1, 5.0))
    waiting = heads(world.model())
    alone = [one for one in waiting if _alone_end_s(device, one, seed % 2 > 0) <= one.deadline_s]
    batch = world.next()
    if batch is None:
        assert not alone
        return
    assert [one for one in waiting if one in batch.requests] == batch.requests  # in order of deadline
    size = device.far_bytes(batch.requests)
    assert batch.start_s == (NOW if size == NOTHING else device.fetched_s(size, NOW))
    assert size == NOTHING or device.fetching_until_s <= NOW
    assert batch.rows == sum(one.rows for one in batch.requests) <= 8
    assert all(batch.start_s + batch.expected_s <= one.deadline_s for one in batch.requests)
    assert batch.start_s <= batch.latest_s
    if len(workers) > 1:
        assert not batch.given_up
    if len(rows) > 1:  # the first is not passed over: it goes now
        assert batch.requests[0] is alone[0]
    for one in batch.given_up:  # for the EXEC of others perhaps, but not for their inputs
        assert NOW + 0.5 + 0.5 * batch.rows + device.fetched_s(device.far_bytes(alone[:8]), NOW) - NOW > (
            one.deadline_s
        )


def _alone_end_s(device: RemoteDevice, one: Request, fetching: bool) -> float:
    size = device.far_bytes((one,))
    if size == NOTHING:
        return NOW + 0.5 + 0.5 * one.rows
    return float("inf") if fetching else device.fetched_s(size, NOW) + 0.5 + 0.5 * one.rows


class FetchingLengths(LengthWorld):
    """A model of one open dimension, and inputs of so many megabytes as they are long."""

    def __init__(self) -> None:
        super().__init__()
        self.model().open = True
        network(self.device, megabyte_s=1 / 16)

    def keeps(self, length: int, *deadlines_s: float, near: bool = False) -> list[Request]:
        made = []
        for deadline_s in deadlines_s:
            self._count += 1
            kept = wire.Kept(sizes=(length * MB,), slot=HERE if near else None)
            one = request(
                self._count, arrived_s=deadline_s - 10.0, deadline_s=deadline_s, kept=kept, extents=(length,),
                host="h" if near else "elsewhere",
            )  # fmt: skip
            self.state.push(self.model(), one)
            self.policy.arrived(self.model(), one, NOW)
            made.append(one)
        self.state.check()
        return made


def test_of_unequal_lengths_a_batch_starts_when_the_inputs_of_those_chosen_are_there() -> None:
    world = FetchingLengths()
    short = world.keeps(1, *[NOW + 50.0] * 3)
    world.keeps(16, *[NOW + 60.0] * 3)
    batch = world.next()
    assert (batch.requests, batch.start_s) == (short, NOW + 3 / 16)


def test_of_unequal_lengths_fewer_are_taken_where_not_all_can_be_fetched_in_time() -> None:
    world = FetchingLengths()
    world.keeps(4, *[NOW + 2.25] * 8)  # eight: 2 s to fetch and 2.5 of EXEC
    batch = world.next()
    count = len(batch.requests)
    assert count >= 2
    assert batch.start_s == NOW + count / 4
    assert batch.start_s + seconds(count, 4) <= NOW + 2.25
    assert batch.given_up == ()


def test_of_unequal_lengths_the_first_does_not_lose_to_what_others_fetch() -> None:
    world = FetchingLengths()
    requests = world.keeps(1, NOW + 1.1, *[NOW + 50.0] * 7)  # eight: half a second to fetch, and 1.0 of EXEC
    batch = world.next()
    assert (batch.requests, batch.start_s, batch.given_up) == (requests[:4], NOW + 0.25, ())


def test_of_unequal_lengths_near_ones_are_planned_while_others_are_fetched() -> None:
    world = FetchingLengths()
    world.keeps(1, NOW + 50.0)
    near = world.keeps(1, NOW + 51.0, near=True)
    world.device.fetching_until_s = NOW + 1.0
    batch = world.next()
    assert (batch.requests, batch.start_s) == (near, NOW)


@pytest.mark.parametrize(("deadline_s", "count"), [(NOW + 2.5, 4), (NOW + 1.6, 1), (NOW + 1.5, 0)])
def test_of_unequal_lengths_near_ones_have_ended_when_what_is_fetched_has_to_start(
    deadline_s: float, count: int
) -> None:
    world = FetchingLengths()
    world.keeps(1, NOW + 50.0)
    near = world.keeps(1, *[NOW + 51.0] * 4, near=True)  # 0.5625 s, and 0.75 together
    action = Action(1, ActionKind.INFER, "m:1", NOW, 1.0, [request(deadline_s=deadline_s)])
    action.far_bytes, action.earliest_s = (0, MB), NOW + 0.25
    world.device.actions[1] = action
    world.device.fetching_until_s = NOW + 0.25
    batch = world.policy.choose(world.device, NOW)
    assert (batch.requests if batch is not None else []) == near[:count]


def test_of_unequal_lengths_who_cannot_be_fetched_in_time_is_hopeless_and_who_can_is_not() -> None:
    world = FetchingLengths()
    late, _ = world.keeps(16, NOW + 2.4, NOW + 2.6)  # a second to fetch, and 1.5 of EXEC
    assert world.model().queue.first_start_s() == pytest.approx(NOW - 0.1)
    assert world.policy.hopeless(world.model(), NOW) == [late]
    world.state.take(world.model(), [late])
    assert world.policy.hopeless(world.model(), NOW) == []
    world.device.fetching_until_s = NOW + 0.2
    assert len(world.policy.hopeless(world.model(), NOW + 0.11)) == 1


def test_who_cannot_be_fetched_in_time_has_expired_and_who_can_has_not() -> None:
    world = FetchingWorld()
    world.asks(1.2, 1.24, 1.26)
    assert world.policy.expired(world.model(), NOW) == 2
    world.fetching(0.1)
    assert world.policy.expired(world.model(), NOW) == 3
    near = FetchingWorld()
    near.asks(1.2, near=True)
    near.fetching(0.1)
    assert near.policy.expired(near.model(), NOW) == 0


def test_who_has_expired_on_one_of_two_devices_can_go_to_the_other() -> None:
    world = FetchingWorld(workers=("w1", "w2"))
    world.asks(1.26)
    world.fetching(0.1)
    assert world.policy.expired(world.model(), NOW) == 0


def test_what_is_fetched_before_a_request_of_unequal_length_is_what_goes_before_it() -> None:
    world = FetchingLengths()
    world.keeps(16, *[NOW + 50.0] * 4)  # four seconds
    model, kept = world.model(), wire.Kept(sizes=(MB,))
    before, behind = (
        request(9, deadline_s=NOW + deadline_s, kept=kept, host="elsewhere", extents=(1,)) for deadline_s in (40, 60)
    )
    assert fetched_before_s(world.device, model, before) == 0.0
    assert fetched_before_s(world.device, model, behind) == 4.0
    plain = FetchingWorld()
    plain.asks(*[50.0] * 4, megabytes=4.0)
    assert fetched_before_s(plain.device, plain.model(), before) == 4.0


@pytest.mark.parametrize(("budget_s", "again"), [(1.3, True), (1.2, False)])
def test_who_is_refused_is_told_to_ask_again_only_if_its_inputs_can_ever_be_fetched_in_time(
    budget_s: float, again: bool
) -> None:
    world = FetchingWorld()
    world.fetching(1.0)
    one = request(1, deadline_s=NOW + budget_s, arrived_s=NOW, kept=wire.Kept(sizes=(MB,)), host="elsewhere")
    verdict = world.policy.admit(world.model(), one, NOW)
    assert not verdict.admitted
    assert (verdict.retry_after_s is not None) == again
