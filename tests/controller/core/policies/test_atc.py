"""The default policy: who is let in, what is too late, what is loaded."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.policies.base import LoadPlan, Verdict
from controller.core.policies.fairness import PATIENCE_S, Fairness
from controller.core.policies.placement import Placement
from mesh import wire
from mesh.codes import ErrorCode
from tests.controller.core.controller_builders import line, request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World, heads

# -- admission --------------------------------------------------------------------------------------------------------


def test_a_request_with_time_enough_is_let_in_with_the_predicted_latency() -> None:
    assert World().admit(10.0) == Verdict(True, 1.0)


def test_a_request_that_could_not_make_it_even_alone_is_refused_and_told_never_to_come_again() -> None:
    assert World().admit(0.5) == Verdict(False, 1.0, ErrorCode.DEADLINE, None)


def test_a_request_that_was_long_on_its_way_here_is_told_to_come_again_if_its_whole_budget_would_suffice() -> None:
    assert World().admit(1.5, age_s=0.75) == Verdict(False, 1.0, ErrorCode.DEADLINE, pytest.approx(0.25, rel=0.05))
    assert World().admit(0.9, age_s=0.75) == Verdict(False, 1.0, ErrorCode.DEADLINE, None)


def test_a_request_that_comes_too_late_behind_what_runs_is_told_when_its_budget_would_suffice() -> None:
    verdict = World().busy(3.0).admit(2.0)
    assert verdict == Verdict(False, 4.0, ErrorCode.DEADLINE, pytest.approx(2.0, rel=0.05))


def test_a_request_that_is_too_late_only_behind_its_own_models_queue_is_refused_for_overload() -> None:
    verdict = World().waits(*[200.0] * 8).admit(3.0)
    assert (verdict.admitted, verdict.code) == (False, ErrorCode.OVERLOAD)
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
    assert world.admit(1.5) == Verdict(False, 3.0, ErrorCode.DEADLINE, pytest.approx(1.5, rel=0.05))
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
    assert World().admit(2.0, rows=4) == Verdict(False, 2.5, ErrorCode.DEADLINE, None)


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


# -- LOAD -------------------------------------------------------------------------------------------------------------


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
    return Placement(world.state, Fairness()).relieve(world.state.devices["w2"], NOW)


def test_a_model_is_loaded_though_every_request_for_it_is_refused_for_the_time_of_its_load() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS}, resident=["a:1"], pages=2)
    model = world.model("b:1")
    for number in range(20):
        model.popularity.add(NOW)
        verdict = world.policy.admit(model, request(number, ref="b:1", arrived_s=NOW, deadline_s=NOW + 1.5), NOW)
        assert verdict.code == ErrorCode.DEADLINE
    assert world.policy.choose_load(world.device, NOW) == LoadPlan(model, ("a:1",))


def test_free_pages_go_first_to_models_that_are_asked() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS, "c:1": SECONDS}, resident=["a:1"], pages=4)
    world.model("c:1").popularity.add(NOW)
    assert world.policy.choose_load(world.device, NOW) == LoadPlan(world.model("c:1"), ())


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


def test_a_model_whose_requests_were_all_refused_is_loaded_before_one_that_saves_less() -> None:
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
