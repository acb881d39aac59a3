"""The default policy: who is let in, what runs next, what is loaded."""

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import wire
from controller.policies.atc import Atc, AtcParameters
from controller.policies.base import Batch, LoadPlan, Verdict
from controller.policies.fairness import PATIENCE_S
from controller.queues import Request
from controller.state import Device, Model
from tests.controller.controller_builders import Shard, line, request

SECONDS = line(0.5, 0.5, load_s=2.0)  # EXEC of b rows: 0.5 + 0.5 x b seconds; exact in binary
NOW = 100.0


class World:
    """One device (or more) with these models, no delay on the way there, and the policy that looks at it."""

    def __init__(
        self,
        profiles: Mapping[str, wire.Profile] | None = None,
        *,
        resident: Sequence[str] | None = None,
        workers: Sequence[str] = ("w1",),
        pages: int = 8,
        batch_max: int = 8,
        any_batch: bool = True,
    ) -> None:
        self.shard = Shard().serve(
            profiles or {"m:1": SECONDS},
            workers=workers, resident=resident, pages=pages, batch_max=batch_max, any_batch=any_batch, now=NOW,
        )  # fmt: skip
        self.state = self.shard.state
        self.policy = Atc(self.state)
        for device in self.state.devices.values():
            device.dispatch.value_s = 0.0
        self._count = 0

    @property
    def device(self) -> Device:
        return self.state.devices["w1"]

    def model(self, ref: str = "m:1") -> Model:
        return self.state.models[ref]

    def waits(
        self, *deadlines_s: float, ref: str = "m:1", rows: int = 1, weight: float = 1.0, slo_s: float | None = None
    ) -> "World":
        """Requests with these deadlines wait; they arrived now, or so long before their deadline."""
        for deadline_s in deadlines_s:
            self._count += 1
            arrived_s = NOW if slo_s is None else deadline_s - slo_s
            self.state.push(
                self.model(ref),
                request(self._count, ref=ref, rows=rows, weight=weight, arrived_s=arrived_s, deadline_s=deadline_s),
            )
            self.state.check()
        return self

    def busy(self, for_s: float) -> "World":
        """The device runs something until so much later."""
        if for_s:
            self.device.exec.add(999, for_s, NOW, NOW)
        return self

    def choose(self, now: float = NOW) -> tuple[str, int, int] | None:
        """(model, requests, heads given up) of the device's next batch."""
        batch = self.policy.choose(self.device, now)
        return None if batch is None else (batch.model.ref, len(batch.requests), len(batch.given_up))

    def loses(self, lost: int, of: int, now: float = NOW) -> "World":
        """So many requests end, so many of them not in time."""
        for i in range(of):
            self.policy.ended(request(), i >= lost, now)
        return self

    def admit(self, budget_s: float, ref: str = "m:1", rows: int = 1, now: float = NOW, age_s: float = 0.0) -> Verdict:
        one = request(1000, ref=ref, rows=rows, arrived_s=now - age_s, deadline_s=now + budget_s - age_s)
        return self.policy.admit(self.model(ref), one, now)

    def load(self, worker: str = "w1", now: float = NOW) -> tuple[str, tuple[str, ...]] | None:
        """(model, evicted) of the device's next LOAD."""
        plan: LoadPlan | None = self.policy.choose_load(self.state.devices[worker], now)
        return None if plan is None else (plan.model.ref, plan.evict)

    def loads(self, ref: str, worker: str) -> None:
        """The LOAD is sent."""
        device = self.state.devices[worker]
        device.residency.loading(ref, device.pages[ref], 1, NOW + device.loads[ref].load_s(), NOW)
        self.state.add_host(self.model(ref), device)


def heads(model: Model) -> list[Request]:
    return model.queue.requests[model.queue.head :]


# -- admission --------------------------------------------------------------------------------------------------------


def test_a_request_with_time_enough_is_let_in_with_the_predicted_latency() -> None:
    assert World().admit(10.0) == Verdict(True, 1.0)


def test_a_request_that_could_not_make_it_even_alone_is_refused_and_told_never_to_come_again() -> None:
    assert World().admit(0.5) == Verdict(False, 1.0, "deadline", None)


def test_a_request_that_was_long_on_its_way_here_is_told_to_come_again_if_its_whole_budget_would_suffice() -> None:
    assert World().admit(1.5, age_s=0.75) == Verdict(False, 1.0, "deadline", pytest.approx(0.25, rel=0.05))
    assert World().admit(0.9, age_s=0.75) == Verdict(False, 1.0, "deadline", None)


def test_a_request_that_comes_too_late_behind_what_runs_is_told_when_its_budget_would_suffice() -> None:
    verdict = World().busy(3.0).admit(2.0)
    assert verdict == Verdict(False, 4.0, "deadline", pytest.approx(2.0, rel=0.05))


def test_a_request_that_is_too_late_only_behind_its_own_models_queue_is_refused_for_overload() -> None:
    verdict = World().waits(*[200.0] * 8).admit(3.0)
    assert (verdict.admitted, verdict.code) == (False, "overload")
    assert verdict.retry_after_s == pytest.approx(4.5 + 1.0 - 3.0, rel=0.05)


def test_the_queue_of_a_model_is_shared_by_its_hosts() -> None:
    one, two = World(), World(workers=("w1", "w2"))
    for world in (one, two):
        world.waits(*[200.0] * 6)
    assert not one.admit(3.0).admitted  # the seventh of one batch: 4 s
    assert two.admit(3.0).admitted  # the fourth of two: 2.5 s


def test_what_waits_for_other_models_refuses_nobody_since_the_order_is_by_value() -> None:
    world = World({"m:1": SECONDS, "n:1": SECONDS}).waits(*[200.0] * 8, ref="n:1")
    assert world.admit(3.0) == Verdict(True, 4.5 + 1.0)


def test_a_request_joins_the_batch_of_those_that_wait_for_its_model() -> None:
    assert World().waits(200.0).admit(10.0) == Verdict(True, 1.5)
    assert World().waits(*[200.0] * 7).admit(10.0) == Verdict(True, 4.5)
    assert World().waits(*[200.0] * 8).admit(10.0) == Verdict(True, 5.5)


def test_a_budget_below_need_is_refused_and_one_above_it_is_let_in() -> None:
    verdicts = [World().busy(3.0).admit(4.0 * factor).admitted for factor in (0.5, 0.99, 1.06, 2.0)]
    assert verdicts == [False, False, True, True]


def test_a_request_for_a_model_that_is_not_there_waits_for_its_load() -> None:
    world = World({"m:1": SECONDS, "n:1": SECONDS}, resident=["n:1"])
    assert world.admit(1.5) == Verdict(False, 3.0, "deadline", pytest.approx(1.5, rel=0.05))
    assert world.admit(10.0) == Verdict(True, 3.0)
    world.device.load.add(1, 4.0, NOW, NOW)
    assert world.admit(10.0) == Verdict(True, 7.0)


def test_the_best_of_several_devices_is_what_counts() -> None:
    world = World(workers=("w1", "w2"))
    world.busy(5.0)
    assert world.admit(10.0) == Verdict(True, 1.0)


def test_a_device_that_leaves_does_not_count() -> None:
    world = World(workers=("w1", "w2"))
    world.busy(5.0)
    world.state.devices["w2"].leaving = True
    assert world.admit(10.0) == Verdict(True, 6.0)


def test_a_request_of_several_rows_is_predicted_as_such() -> None:
    assert World().admit(10.0, rows=4) == Verdict(True, 2.5)
    assert World().admit(2.0, rows=4) == Verdict(False, 2.5, "deadline", None)


def test_rows_beyond_the_largest_batch_of_a_device_are_refused_and_not_a_crash() -> None:
    world = World({"m:1": line(0.5, 0.5, sizes=(1, 2, 4))}, batch_max=8, any_batch=False)
    assert not world.admit(0.5, rows=8).admitted


def test_who_comes_again_when_told_is_let_in_if_nobody_else_came() -> None:
    for busy_s, others, budget_s in itertools.product((0.0, 1.0, 3.0), (0, 3, 8, 20), (1.2, 2.0, 3.5)):
        world = World({"m:1": SECONDS, "n:1": SECONDS}).waits(*[500.0] * others, ref="n:1").busy(busy_s)
        verdict = world.admit(budget_s)
        if not verdict.admitted:
            assert verdict.retry_after_s is not None
            later = world.admit(budget_s + verdict.retry_after_s * 1.06)
            assert later.admitted, (busy_s, others, budget_s)


# -- what is too late -------------------------------------------------------------------------------------------------


def test_heads_that_cannot_make_it_even_next_and_alone_have_expired() -> None:
    world = World().waits(100.9, 100.99, 101.06, 200.0)
    assert world.policy.expired(world.model(), NOW) == 2
    assert world.policy.expired(world.model(), NOW + 50.0) == 3


def test_heads_expire_by_the_best_of_the_devices_that_have_the_model() -> None:
    world = World(workers=("w1", "w2")).waits(102.0).busy(5.0)
    assert world.policy.expired(world.model(), NOW) == 0
    world.state.devices["w2"].exec.add(998, 5.0, NOW, NOW)
    assert world.policy.expired(world.model(), NOW) == 1


def test_heads_of_a_model_that_is_nowhere_expire_with_the_time_of_its_load() -> None:
    world = World({"m:1": SECONDS, "n:1": SECONDS}, resident=["n:1"]).waits(102.9, 103.2)
    assert world.policy.expired(world.model(), NOW) == 1


# -- one model's batch ------------------------------------------------------------------------------------------------


def test_a_model_whose_hosts_are_far_behind_gets_another_one_before_anything_is_lost() -> None:
    world = World({"m:1": SECONDS}, resident=[], workers=("w1", "w2"))
    world.shard.wake(NOW)
    world.state.drop_host(world.model(), world.state.devices["w2"])
    world.state.devices["w2"].residency.gone("m:1")
    world.waits(*[NOW + 20.0] * 8)
    assert _relief(world) is None
    world.busy(12.0)
    plan = _relief(world)
    assert plan is not None
    assert plan.model.ref == "m:1"


def _relief(world: World) -> LoadPlan | None:
    return world.policy._placement._relieve(world.state.devices["w2"], NOW)


def test_a_model_is_loaded_though_every_request_for_it_is_refused_for_the_time_of_its_load() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS}, resident=["a:1"], pages=2)
    model = world.model("b:1")
    for number in range(20):
        model.popularity.add(NOW)
        verdict = world.policy.admit(model, request(number, ref="b:1", arrived_s=NOW, deadline_s=NOW + 1.5), NOW)
        assert verdict.code == "deadline"
    assert world.policy.choose_load(world.device, NOW) == LoadPlan(model, ("a:1",))


def test_free_pages_go_first_to_models_that_are_asked() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS, "c:1": SECONDS}, resident=["a:1"], pages=4)
    world.model("c:1").popularity.add(NOW)
    assert world.policy.choose_load(world.device, NOW) == LoadPlan(world.model("c:1"), ())


def test_nothing_is_chosen_while_nothing_waits() -> None:
    assert World().policy.choose(World().device, NOW) is None


def test_a_batch_says_when_it_starts_how_long_it_takes_and_when_it_is_of_no_use() -> None:
    world = World().waits(104.0, 105.0, 106.0).busy(0.5)
    model = world.model()
    assert world.policy.choose(world.device, NOW) == Batch(
        model, heads(model), given_up=[], rows=3, start_s=100.5, expected_s=2.0, latest_s=105.0 - 2.0
    )


def test_a_batch_starts_when_the_weights_are_there() -> None:
    world = World({"m:1": SECONDS}, resident=[])
    world.shard.wake(NOW)
    world.waits(200.0)
    batch = world.policy.choose(world.device, NOW)
    assert batch is not None
    assert batch.start_s == world.device.residency.models["m:1"].ready_s > NOW


def test_a_busy_device_is_not_bound_behind_a_load_before_that_is_nearly_done() -> None:
    """Other work may come until then, which it could do."""
    world = World({"m:1": SECONDS}, resident=[])
    world.device.busy_until_s = NOW
    world.shard.wake(NOW)
    world.waits(200.0)
    ready_s = world.device.residency.models["m:1"].ready_s
    assert world.choose() is None
    assert world.policy.wake_at(NOW) == pytest.approx(ready_s)
    assert world.choose(ready_s) == ("m:1", 1, 0)


def test_a_batch_that_must_wait_for_its_load_earns_less_than_one_that_need_not() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS}, resident=["b:1"])
    world.shard.wake(NOW)
    assert world.device.residency.models["a:1"].loading is not None
    world.waits(NOW + 3.0, ref="a:1").waits(NOW + 1.05, ref="b:1")
    assert world.choose() == ("b:1", 1, 0)


def test_all_that_waits_goes_together_up_to_the_largest_batch() -> None:
    assert World().waits(*[200.0] * 5).choose() == ("m:1", 5, 0)
    assert World().waits(*[200.0] * 8).choose() == ("m:1", 8, 0)
    assert World().waits(*[200.0] * 9).choose() == ("m:1", 8, 0)


def test_the_batch_is_no_larger_than_the_first_deadline_allows_where_larger_ones_gain_nothing() -> None:
    flat = line(0.0, 1.0)  # batching does not pay
    world = World({"m:1": flat}).waits(103.3, *[200.0] * 5)
    assert world.choose() == ("m:1", 3, 0)


def test_heads_are_given_up_where_the_rest_then_earns_more_per_second() -> None:
    world = World().waits(101.2, *[200.0] * 8)
    assert world.choose() == ("m:1", 8, 1)


@pytest.mark.parametrize(
    ("two_s", "choice"),
    [(1.90, ("m:1", 2, 1)), (1.95, ("m:1", 2, 1)), (1.97, ("m:1", 1, 0)), (2.0, ("m:1", 1, 0))],
)
def test_heads_are_given_up_only_for_a_gain_of_more_than_two_percent(
    two_s: float, choice: tuple[str, int, int]
) -> None:
    assert AtcParameters().skip_gain == 1.02
    profile = wire.Profile(exec_s={1: 1.0, 2: two_s}, load_s=2.0)
    assert World({"m:1": profile}, batch_max=2).waits(101.5, 200.0, 200.0).choose() == choice


def test_heads_that_cannot_make_it_are_passed_over() -> None:
    assert World().waits(100.5, 100.9, 150.0, 150.0).choose() == ("m:1", 2, 2)


def test_heads_that_are_too_late_here_may_still_make_it_on_another_device() -> None:
    world = World(workers=("w1", "w2")).waits(100.5, 100.9, 150.0, 160.0)
    batch = world.policy.choose(world.device, NOW)
    assert batch is not None
    assert [one.deadline_s for one in batch.requests] == [150.0, 160.0]
    assert batch.given_up == []


def test_nothing_is_chosen_if_nobody_can_make_it() -> None:
    assert World().waits(100.5, 100.9).choose() is None


def test_batches_come_as_large_as_the_rest_of_the_queue_supports() -> None:
    """Seven could wait for eight rows, not eight: the largest batch whose members can all wait has six."""
    world = World().waits(101.2, 103.0, *[104.0] * 6)
    assert world.choose() == ("m:1", 6, 2)


def reference_batch(deadlines: list[float], durations: list[float], start_s: float) -> tuple[int, int] | None:
    """(batch, heads given up) on an idle device, naively. Source: policy_study, section 1."""
    late = sum(deadline < start_s + durations[1] for deadline in deadlines)
    rest = sorted(deadlines)[late:]
    most = min(len(rest), len(durations) - 1)
    if not most:
        return None
    keep = max(b for b in range(1, most + 1) if start_s + durations[b] <= rest[0])
    if keep < most:
        fits = [b for b in range(1, most + 1) if sum(d >= start_s + durations[b] for d in rest) >= b]
        if fits and fits[-1] / durations[fits[-1]] > 1.02 * keep / durations[keep]:
            given_up = sum(d < start_s + durations[fits[-1]] for d in rest)
            return fits[-1], late + given_up
    return keep, late


@settings(max_examples=400)
@given(
    deadlines=st.lists(st.integers(0, 6000), min_size=1, max_size=14),
    base=st.floats(0.01, 1.0),
    row=st.floats(0.01, 1.0),
)
def test_the_batch_of_a_model_is_the_one_that_the_study_s_rule_finds(
    deadlines: list[int], base: float, row: float
) -> None:
    world = World({"m:1": line(base, row)})
    instants = [NOW + milliseconds / 1000 + 1e-5 for milliseconds in deadlines]
    world.waits(*instants)
    curve = world.device.curves["m:1"]
    found = world.choose()
    expected = reference_batch(instants, [curve.exec_s(rows) for rows in range(9)], NOW)
    assert found == (None if expected is None else ("m:1", *expected))


# -- requests of several rows -----------------------------------------------------------------------------------------


def test_requests_of_several_rows_are_kept_whole() -> None:
    assert World().waits(200.0, 201.0, 202.0, rows=3).choose() == ("m:1", 2, 0)
    world = World().waits(200.0, rows=5).waits(201.0, rows=4).waits(202.0)
    assert world.choose() == ("m:1", 1, 0)


def test_a_batch_of_many_rows_is_no_larger_than_the_first_deadline_allows() -> None:
    assert World().waits(102.8, rows=2).waits(200.0, rows=2).choose() == ("m:1", 2, 0)
    assert World().waits(102.4, rows=2).waits(200.0, rows=2).choose() == ("m:1", 1, 0)


def test_a_request_as_large_as_the_largest_batch_runs_alone() -> None:
    world = World().waits(200.0, rows=8).waits(201.0)
    first = world.model().queue.first()
    assert world.policy.choose(world.device, NOW) == Batch(world.model(), [first], [], 8, NOW, 4.5, 200.0 - 4.5)


def test_the_expected_duration_is_the_same_for_four_rows_of_one_request_and_of_four() -> None:
    one = World().waits(200.0, rows=4)
    four = World().waits(*[200.0] * 4)
    first, second = one.policy.choose(one.device, NOW), four.policy.choose(four.device, NOW)
    assert first is not None
    assert second is not None
    assert first.expected_s == second.expected_s == 2.5


@settings(max_examples=200)
@given(
    waiting=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 8)), min_size=1, max_size=10),
    running=st.floats(0.0, 3.0),
)
def test_a_batch_has_whole_requests_in_order_and_never_too_many_rows(
    waiting: list[tuple[int, int]], running: float
) -> None:
    world = World()
    for milliseconds, rows in waiting:
        world.waits(NOW + milliseconds / 1000, rows=rows)
    if running:
        world.busy(running)
    batch = world.policy.choose(world.device, NOW)
    queue = world.model().queue
    if batch is None:
        start_s = NOW + running
        assert all(one.deadline_s < start_s + 1.06 for one in queue.requests)
        return
    assert batch.requests
    assert batch.rows == sum(one.rows for one in batch.requests) <= 8
    assert [*batch.given_up, *batch.requests] == heads(world.model())[: len(batch.given_up) + len(batch.requests)]
    assert batch.start_s == NOW + running
    assert batch.latest_s >= batch.start_s


# -- between models ---------------------------------------------------------------------------------------------------


def two(urgent_s: float, other_s: float, *, others: int = 1, weight: float = 1.0, lost: bool = False) -> World:
    """One request of "m:1" and some of "n:1"; all have a budget of ten seconds."""
    world = World({"m:1": SECONDS, "n:1": SECONDS})
    world.waits(NOW + urgent_s, ref="m:1", slo_s=10.0)
    world.waits(*[NOW + other_s] * others, ref="n:1", slo_s=10.0, weight=weight)
    if lost:
        world.loses(5, of=10)
    return world


def test_the_earlier_deadline_goes_first_where_all_else_is_equal() -> None:
    assert two(2.0, 3.0).choose() == ("m:1", 1, 0)
    assert two(3.0, 2.0).choose() == ("n:1", 1, 0)


def test_while_nothing_is_lost_the_earlier_deadline_goes_ahead_of_the_denser_batch() -> None:
    assert two(1.1, 3.5, others=4).choose() == ("m:1", 1, 0)


def test_while_much_is_lost_the_denser_batch_goes_first() -> None:
    assert two(1.1, 3.5, others=4, lost=True).choose() == ("n:1", 4, 0)


def test_what_was_lost_is_forgotten_in_some_hundred_milliseconds() -> None:
    world = two(1.7, 4.0, others=4, lost=True)
    assert world.choose() == ("n:1", 4, 0)
    world.loses(0, of=1, now=NOW + 0.5)
    assert world.choose(NOW + 0.5) == ("m:1", 1, 0)


def test_a_full_batch_need_not_wait_for_its_deadline() -> None:
    assert two(1.5, 90.0, others=8).choose() == ("n:1", 8, 0)
    assert two(1.5, 90.0, others=7).choose() == ("m:1", 1, 0)


def test_a_request_worth_more_goes_ahead_of_a_slightly_earlier_deadline() -> None:
    assert two(2.0, 2.1, weight=1.0).choose() == ("m:1", 1, 0)
    assert two(2.0, 2.1, weight=1.5).choose() == ("n:1", 1, 0)


def test_a_request_worth_next_to_nothing_and_in_no_hurry_is_still_served_by_an_idle_device() -> None:
    assert World().waits(1e9, weight=0.01, slo_s=1.0).choose() == ("m:1", 1, 0)


def test_rows_count_for_the_value_of_a_batch() -> None:
    """Four rows in one request are worth as much as four requests."""
    world = World({"m:1": SECONDS, "n:1": SECONDS})
    world.waits(*[NOW + 4.0] * 3, ref="m:1", slo_s=10.0).waits(NOW + 4.5, ref="n:1", rows=4, slo_s=10.0)
    assert world.choose() == ("n:1", 1, 0)


def test_equal_scores_go_to_the_model_that_has_waited_longest() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS})
    assert world.waits(105.0, ref="b:1").waits(105.0, ref="a:1").choose() == ("b:1", 1, 0)
    world = World({"a:1": SECONDS, "b:1": SECONDS})
    assert world.waits(105.0, ref="a:1").waits(105.0, ref="b:1").choose() == ("a:1", 1, 0)


def test_a_deadline_centuries_away_does_not_stop_the_work() -> None:
    world = World()
    world.state.push(world.model(), request(1, arrived_s=NOW, deadline_s=1e12))
    world.state.push(world.model(), request(2, arrived_s=1e12 - 1e-9, deadline_s=1e12))
    assert world.choose() == ("m:1", 2, 0)


def test_the_window_follows_the_share_that_is_lost() -> None:
    """A batch of "n:1" is 1.6 times as dense; how much slack outweighs that depends on the loss alone."""

    def last_slack_that_wins(lost: int) -> float:
        for tenths in range(60, 0, -1):
            world = two(1.05, 2.5 + tenths / 10, others=4)
            world.loses(lost, of=100)
            if world.choose() == ("n:1", 4, 0):
                return tenths / 10
        return 0.0

    slacks = [last_slack_that_wins(lost) for lost in (0, 5, 12, 25, 50)]
    assert slacks == sorted(slacks)
    assert slacks[0] < slacks[2] < slacks[3] == slacks[4]


# -- LOAD -------------------------------------------------------------------------------------------------------------


def crowded(*refs: str, resident: Sequence[str], pages: int = 4, profile: wire.Profile = SECONDS) -> World:
    """Models of two pages each on a device that has room for two of them."""
    return World(dict.fromkeys(refs, profile), resident=resident, pages=pages)


def test_the_model_whose_load_saves_most_requests_per_second_of_copying_is_loaded() -> None:
    world = crowded("a:1", "b:1", "c:1", "d:1", resident=["c:1", "d:1"])
    world.waits(*[104.0] * 2, ref="a:1").waits(*[104.0] * 3, ref="b:1")  # there is time for one of the two
    assert world.load() == ("b:1", ("c:1",))


def test_while_all_loads_are_possible_the_one_with_the_nearest_deadline_is_first() -> None:
    world = crowded("a:1", "b:1", "c:1", "d:1", resident=["c:1", "d:1"])
    world.waits(*[110.0] * 2, ref="a:1").waits(*[111.0] * 3, ref="b:1")
    assert world.load() == ("a:1", ("c:1",))


def test_a_load_that_takes_longer_is_worth_less() -> None:
    profiles = {"a:1": line(0.5, 0.5, load_s=1.0), "b:1": line(0.5, 0.5, load_s=4.0), "c:1": SECONDS}
    world = World(profiles, resident=["c:1"], pages=4)
    world.waits(105.5, ref="a:1").waits(*[105.5] * 2, ref="b:1")  # there is time for one of the two
    assert world.load() == ("a:1", ())


def test_weights_enter_the_worth_of_a_load() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["c:1"])
    world.waits(*[104.0] * 2, ref="a:1").waits(104.0, ref="b:1", weight=5.0)  # there is time for one of the two
    assert world.load() == ("b:1", ())


def test_requests_that_will_be_too_late_anyway_are_not_loaded_for() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"])
    world.waits(*[102.9] * 5, ref="a:1")
    assert world.load() is None
    world.waits(103.1, ref="a:1")
    assert world.load() == ("a:1", ("b:1",))


def test_a_load_behind_another_is_judged_by_when_that_ends() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"])
    world.waits(104.0, ref="a:1")
    assert world.load() == ("a:1", ("b:1",))
    world.device.load.add(7, 2.0, NOW, NOW)
    assert world.load() is None


def test_a_model_with_waiting_or_running_work_is_never_evicted() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"])
    world.waits(200.0, ref="a:1").waits(200.0, ref="b:1")
    assert world.load() == ("a:1", ("c:1",))
    world.device.residency.models["c:1"].bound = 1
    assert world.load() is None


def test_the_least_popular_model_is_evicted() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"])
    assert world.load(now=NOW - 60) is None  # counts of requests are a minute old
    world.waits(200.0, ref="a:1")
    world.model("b:1").popularity.add(NOW, 100)
    world.model("c:1").popularity.add(NOW, 10)
    assert world.load() == ("a:1", ("c:1",))
    world.model("a:1").popularity.add(NOW, 200)
    world.model("c:1").popularity.add(NOW, 200)
    assert world.load() == ("a:1", ("b:1",))


def test_a_victim_that_is_asked_less_than_once_in_a_loads_time_goes_while_all_loads_are_possible() -> None:
    world = crowded("a:1", "b:1", "c:1", "d:1", resident=["c:1", "d:1"])
    assert world.load(now=NOW - 60) is None  # counts of requests are a minute old
    for ref, asked in (("c:1", 7), ("d:1", 1000)):  # in 15 s; a LOAD takes 2 s
        world.model(ref).popularity.add(NOW, asked)
    world.waits(104.0, ref="a:1", weight=0.01)
    assert world.load() == ("a:1", ("c:1",))
    world.waits(104.0, ref="b:1", weight=0.01)  # there is time for one of the two: now it is worth that counts
    assert world.load() is None


def test_a_victim_that_is_asked_more_than_once_in_a_loads_time_stays() -> None:
    world = crowded("a:1", "c:1", "d:1", resident=["c:1", "d:1"])
    assert world.load(now=NOW - 60) is None  # counts of requests are a minute old
    for ref in ("c:1", "d:1"):
        world.model(ref).popularity.add(NOW, 8)  # in 15 s; a LOAD takes 2 s
    world.waits(104.0, ref="a:1", weight=0.01)
    assert world.load() is None


def test_of_a_models_future_counts_a_share_of_the_time_in_which_loads_fill_the_device() -> None:
    """So that models take turns, each LOAD for a queue. Memory for two, LOADs of 0.02 s: 0.01 s of the future."""
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"], profile=line(0.25, 0.25, load_s=0.02))
    assert world.load(now=NOW - 60) is None
    for ref in ("b:1", "c:1"):
        world.model(ref).popularity.add(NOW, 15 * 100)  # 100 a second
    world.waits(100.6, ref="a:1")
    assert world.load() is None
    world.waits(100.6, ref="a:1")
    assert world.load() == ("a:1", ("b:1",))


def test_a_model_asked_in_vain_is_loaded_before_one_that_saves_less() -> None:
    world = crowded("a:1", "b:1", resident=[])
    world.waits(103.0, ref="a:1")
    assert not world.admit(1.5, ref="b:1").admitted  # its LOAD takes 2 s
    world.model("b:1").popularity.add(NOW, 10)
    assert world.load() == ("b:1", ())


def test_a_model_that_is_on_some_device_is_not_loaded_on_demand() -> None:
    world = crowded("a:1", "b:1", resident=["a:1", "b:1"])
    world.waits(*[200.0] * 5, ref="a:1")
    assert world.load() is None


def test_free_pages_are_filled_with_what_is_most_popular_and_nowhere_yet() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["a:1"])
    world.model("b:1").popularity.add(NOW, 1)
    world.model("c:1").popularity.add(NOW, 2)
    assert world.load() == ("c:1", ())


def test_the_first_request_does_not_take_all_devices_for_its_model() -> None:
    workers = ("w1", "w2", "w3")
    world = World(dict.fromkeys(("a:1", "b:1"), SECONDS), resident=[], workers=workers, pages=2)
    world.waits(200.0, ref="a:1")
    assert world.load("w1") == ("a:1", ())
    world.loads("a:1", "w1")
    assert world.load("w2") == ("b:1", ())
    world.loads("b:1", "w2")
    assert world.load("w3") is None  # both are on their way, and who is asked more is not known yet
    world.model("b:1").popularity.add(NOW, 20)
    assert world.load("w3") == ("b:1", ())


def test_free_pages_are_shared_out_by_demand() -> None:
    workers = [f"w{i}" for i in range(6)]
    world = World(dict.fromkeys(("a:1", "b:1"), SECONDS), resident=[], workers=workers, pages=2)
    world.model("a:1").popularity.add(NOW, 400)
    world.model("b:1").popularity.add(NOW, 200)
    for worker in workers:
        plan = world.load(worker)
        assert plan is not None
        world.loads(plan[0], worker)
    assert (len(world.model("a:1").hosts), len(world.model("b:1").hosts)) == (4, 2)


def test_no_device_loads_ahead_of_demand_right_after_a_load_that_could_not_have_waited() -> None:
    profile = dict.fromkeys(("a:1", "b:1", "c:1"), SECONDS)
    world = World(profile, resident=[], workers=("w1", "w2"), pages=4)
    world.waits(103.0, ref="a:1")
    assert world.load("w1") == ("a:1", ())
    world.loads("a:1", "w1")
    assert world.load("w2", NOW + 1.9) is None
    assert world.load("w2", NOW + 2.1) == ("b:1", ())


def test_nobody_is_evicted_for_a_model_that_nobody_asks_for() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["a:1", "b:1"])
    world.model("c:1").popularity.add(NOW, 100)
    assert world.load() is None


def test_free_pages_are_filled_one_load_at_a_time() -> None:
    world = crowded("a:1", "b:1", resident=["a:1"])
    world.device.load.add(7, 1.0, NOW, NOW)
    assert world.load() is None


def test_a_model_larger_than_the_device_is_not_loaded() -> None:
    world = crowded("a:1", resident=[], pages=1)
    world.waits(200.0, ref="a:1")
    assert world.load() is None


def test_the_policy_waits_for_events_alone() -> None:
    assert World().waits(200.0).policy.wake_at(NOW) is None


@settings(max_examples=150)
@given(data=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 8000)), max_size=20), free=st.integers(2, 8))
def test_what_is_evicted_makes_room_and_has_no_work(data: list[tuple[str, int]], free: int) -> None:
    refs = ["a:1", "b:1", "c:1", "d:1"]
    world = World(dict.fromkeys(refs, SECONDS), resident=refs[: free // 2], pages=free)
    for letter, milliseconds in data:
        world.waits(NOW + milliseconds / 1000, ref=f"{letter}:1")
    plan = world.load()
    if plan is None:
        return
    ref, evicted = plan
    assert ref not in world.device.residency.models
    assert world.device.residency.free + 2 * len(evicted) >= 2
    assert not any(heads(world.model(other)) for other in evicted)


def test_a_model_that_is_nowhere_and_loses_requests_is_loaded_in_the_end_however_popular_the_others_are() -> None:
    world = crowded("a:1", "b:1", "c:1", resident=["b:1", "c:1"])
    for ref in ("b:1", "c:1"):
        world.model(ref).popularity.add(NOW, 1000)
    world.waits(200.0, ref="a:1")
    assert world.load() is None
    world.policy.ended(request(9, ref="a:1"), False, NOW)
    assert world.policy.choose_load(world.device, NOW + 0.5 * PATIENCE_S) is None
    plan = world.policy.choose_load(world.device, NOW + 1.1 * PATIENCE_S)
    assert plan is not None
    assert plan.model.ref == "a:1"
    assert len(plan.evict) == 1
