"""The default policy's batches of models with open dimensions."""

from collections.abc import Sequence

import msgspec
import pytest

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.estimates import Term
from controller.core.estimation.sized import SizedCurve
from controller.core.policies.atc import Atc, AtcParameters
from controller.core.policies.base import Batch
from controller.core.policies.sized_plans import LOOKED_AT, Objectives, SizedPlans
from controller.core.queues import Request
from mesh import wire
from tests.controller.core.controller_builders import line, request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World

LENGTHS = (1, 2, 4, 8, 16)  # greatest of each place
ROWS_MAX = 8


def seconds(rows: int, length: int) -> float:
    """EXEC: half a second, and a sixteenth for each row and unit of length; exact in binary."""
    return 0.5 + rows * length / 16


def length_curve(spec: wire.ModelSpec) -> SizedCurve:
    """Durations by rows and length, as a device measured them; the lengths are the classes."""
    sizes = range(1, ROWS_MAX + 1)
    times = [{rows: seconds(rows, length) for rows in sizes} for length in LENGTHS]
    curve = SizedCurve([*sizes], [], ROWS_MAX, True, Term(), dims=spec.dims, edges=(LENGTHS,), times=times)
    curve.bounds = (LENGTHS,)
    curve.tables = [[0.0, *(seconds(rows, length) for rows in sizes)] for length in LENGTHS]
    curve.limits = [ROWS_MAX] * len(LENGTHS)
    curve.shares = [seconds(ROWS_MAX, LENGTHS[-1]) / ROWS_MAX] * len(LENGTHS)
    return curve


class LengthWorld(World):
    """One device, or more, with a model of one open dimension."""

    def __init__(
        self,
        *,
        reserve: float = 0.0,
        exact: bool = False,
        workers: Sequence[str] = ("w1",),
        others: Sequence[str] = (),
        refuse_left: float = 0.25,
    ) -> None:
        super().__init__({"m:1": line(0.5, 1.0)} | dict.fromkeys(others, SECONDS), workers=workers)
        self.policy = Atc(self.state, AtcParameters(reserve=reserve, refuse_left=refuse_left))
        model = self.model()
        tensor = wire.TensorSpec(name="ids", dtype="float32", shape=(-1, -1), dims=("seq",))
        model.spec = msgspec.structs.replace(
            model.spec, inputs=(tensor,), dims=(wire.Dim(name="seq", least=1, most=16),), exact=exact
        )
        for device in self.state.devices.values():
            device.curves["m:1"] = length_curve(model.spec)
            device.noise.value_s = 0.0

    def asks(
        self, length: int, *deadlines_s: float, slo_s: float = 10.0, rows: int = 1, weight: float = 1.0
    ) -> list[Request]:
        """Requests of this length wait, with these deadlines."""
        made = []
        for deadline_s in deadlines_s:
            self._count += 1
            one = request(self._count, rows=rows, weight=weight, arrived_s=deadline_s - slo_s, deadline_s=deadline_s)
            one.extents = (length,)
            self.state.push(self.model(), one)
            self.policy.arrived(self.model(), one, NOW)
            made.append(one)
        return made

    def next(self, device: RemoteDevice | None = None, now: float = NOW) -> Batch:
        batch = self.policy.choose(device or self.device, now)
        assert batch is not None
        return batch


def test_what_costs_about_the_same_goes_together() -> None:
    world = LengthWorld()
    short = world.asks(1, *[NOW + 5.0] * 3)
    world.asks(16, *[NOW + 6.0] * 3)
    batch = world.next()
    assert batch == Batch(
        world.model(), short, given_up=[], rows=3, start_s=NOW, expected_s=seconds(3, 1),
        latest_s=NOW + 5.0 - seconds(3, 1), extents=(1,),
    )  # fmt: skip


def test_a_batch_is_expected_to_take_as_long_as_its_own_extents_do() -> None:
    world = LengthWorld()
    world.asks(9, NOW + 5.0, NOW + 6.0)  # their place goes up to 16
    batch = world.next()
    assert batch.extents == (9,)
    assert batch.expected_s == pytest.approx(seconds(2, 9))


def test_nobody_is_planned_who_would_be_late() -> None:
    world = LengthWorld()
    world.asks(16, NOW + seconds(1, 16) - 0.01)
    assert world.policy.choose(world.device, NOW) is None
    on_time = world.asks(16, NOW + seconds(1, 16))
    assert world.next().requests == on_time


def test_a_margin_for_noise_is_kept() -> None:
    world = LengthWorld().busy(1.0)
    world.device.noise.value_s = 0.1
    world.asks(16, NOW + 1.0 + 1.09 * seconds(1, 16))
    assert world.policy.choose(world.device, NOW) is None
    world.asks(16, NOW + 1.0 + 1.11 * seconds(1, 16))
    assert world.next().rows == 1


def test_a_model_that_pads_nothing_has_requests_of_equal_extents_in_a_batch() -> None:
    world = LengthWorld(exact=True)
    world.asks(15, NOW + 20.0, NOW + 21.0, slo_s=25.0)
    world.asks(16, NOW + 20.5, NOW + 21.5, slo_s=25.0)  # of the same place
    assert world.next().extents == (15,)
    assert world.next().rows == 2
    padded = LengthWorld()
    padded.asks(15, NOW + 20.0, NOW + 21.0, slo_s=25.0)
    padded.asks(16, NOW + 20.5, NOW + 21.5, slo_s=25.0)
    assert padded.next().rows == 4


def test_requests_of_several_rows_count_as_many() -> None:
    world = LengthWorld()
    world.asks(1, NOW + 5.0, NOW + 6.0, rows=5)
    assert (world.next().rows, len(world.next().requests)) == (5, 1)
    world.asks(1, NOW + 5.0, rows=3)
    assert world.next().rows == 8


def test_a_long_queue_is_planned_by_its_nearest_deadlines() -> None:
    world = LengthWorld()
    world.asks(2, *[NOW + 9.0 + i / 1000 for i in range(LOOKED_AT)])
    late = world.asks(1, *[NOW + 9.9] * ROWS_MAX)
    batch = world.next()
    assert batch.rows == ROWS_MAX
    assert not set(map(id, batch.requests)) & set(map(id, late))


def test_those_that_are_too_late_do_not_hide_who_is_not() -> None:
    world = LengthWorld()
    world.asks(16, *[NOW + 1.0] * 2 * LOOKED_AT)  # hopeless, and not refused yet
    world.asks(1, NOW + 2.0)
    assert world.next().rows == 1


def test_of_equal_lengths_the_first_deadlines_are_given_up_for_a_larger_batch() -> None:
    """As with a model without open dimensions; unless another host may take them."""
    for workers, given_up in ((["w1"], 1), (["w1", "w2"], 0)):
        world = LengthWorld(workers=workers)
        world.asks(8, NOW + 1.05)
        world.asks(8, *[NOW + 9.0] * ROWS_MAX)
        batch = world.next()
        assert batch.rows == ROWS_MAX
        assert len(batch.given_up) == given_up


# -- objectives -------------------------------------------------------------------------------------------------------


def test_no_batch_of_unequal_lengths_takes_longer_than_the_shortest_objective() -> None:
    world = LengthWorld()
    world.asks(16, *[NOW + 9.0] * 4, slo_s=9.0)
    world.asks(8, *[NOW + 9.0] * 4, slo_s=9.0)
    world.asks(1, NOW + 9.0, slo_s=2.0)
    world.asks(1, NOW + 9.0, slo_s=2.0)
    assert world.next().expected_s <= 2.0


def test_one_rare_objective_does_not_rule_all_batches() -> None:
    objectives = Objectives()
    for i in range(1000):
        objectives.arrived(0.001 if i % 20 == 0 else 0.1)
    assert (objectives.least_s, objectives.most_s, objectives.differ) == (0.1, 0.1, False)
    for i in range(1000):
        objectives.arrived(0.05 if i % 4 == 0 else 0.1)
    assert (objectives.least_s, objectives.most_s, objectives.differ) == (0.05, 0.1, True)


# -- the reserve ------------------------------------------------------------------------------------------------------


def long_served(reserve: float, rounds: int = 400) -> float:
    """Share of device time that a long request gets where in each round there is time for it or for eight short."""
    world = LengthWorld(reserve=reserve)
    now, long_s, total_s = NOW, 0.0, 0.0
    for _ in range(rounds):
        made = [*world.asks(16, now + 1.5, slo_s=1.5), *world.asks(1, *[now + 1.5] * ROWS_MAX, slo_s=1.5)]
        batch = world.next(now=now)
        world.policy.bound(world.device, batch, now)
        world.state.take(world.model(), made)
        total_s += batch.expected_s
        long_s += batch.expected_s if batch.extents == (16,) else 0.0
        now += 1.5
    return long_s / total_s


def test_long_requests_get_their_reserve_where_not_all_can_be_in_time() -> None:
    assert long_served(0.0) == 0.0
    assert long_served(0.1) == pytest.approx(0.1, abs=0.02)
    assert long_served(0.3) == pytest.approx(0.3, abs=0.03)


def test_the_reserve_that_is_saved_up_is_bounded() -> None:
    """After a long time without long requests they do not get all that was not used."""
    world = LengthWorld(reserve=0.1)
    for _ in range(500):
        world.asks(1, NOW + 1.5, slo_s=1.5)
        batch = world.next()
        world.policy.bound(world.device, batch, NOW)
        world.state.take(world.model(), batch.requests)
    in_row = 0
    for _ in range(100):
        made = [*world.asks(16, NOW + 1.5, slo_s=1.5), *world.asks(1, *[NOW + 1.5] * ROWS_MAX, slo_s=1.5)]
        batch = world.next()
        if batch.extents != (16,):
            break
        world.policy.bound(world.device, batch, NOW)
        world.state.take(world.model(), made)
        in_row += 1
    assert in_row <= 3  # two objectives are 3 seconds, and each takes one and a half


def test_nothing_is_kept_of_devices_that_are_gone() -> None:
    """Their costs are made anew if they come back, and their reserve begins anew."""
    world = LengthWorld(reserve=0.1, workers=["w1", "w2"])
    plans = SizedPlans(world.state, 0.1)
    made = world.asks(1, NOW + 5.0)
    plans.arrived(world.model(), made[0])
    plan = plans.plan(world.state.devices["w2"], world.model(), NOW)
    assert plan is not None
    plans.bound(world.state.devices["w2"], plan.batch())
    gone = world.state.devices.pop("w2")
    assert plans.plan(world.device, world.model(), NOW) is not None
    plans.bound(gone, plan.batch())  # its last batch: nobody keeps books of it


# -- among others -----------------------------------------------------------------------------------------------------


def test_models_compete_by_value_per_second_and_urgency() -> None:
    world = LengthWorld(others=["n:1"])
    world.asks(1, *[NOW + 1.5] * 4, slo_s=1.5)  # 4 in 0.75 s
    world.waits(NOW + 1.5, ref="n:1", slo_s=1.5)  # 1 in 1 s
    assert world.next().model.ref == "m:1"
    world = LengthWorld(others=["n:1"])
    world.asks(16, NOW + 9.0)  # 1 in 1.5 s, and it can wait
    world.waits(NOW + 1.5, ref="n:1", slo_s=1.5)
    assert world.next().model.ref == "n:1"


def test_a_weight_counts_for_each_row() -> None:
    world = LengthWorld(others=["n:1"])
    world.asks(16, NOW + 1.6, slo_s=1.6)
    world.waits(NOW + 1.1, ref="n:1", slo_s=1.6, weight=2.0)
    assert world.next().model.ref == "n:1"
    world.asks(16, NOW + 1.6, slo_s=1.6, weight=20.0)
    assert world.next().model.ref == "m:1"


@pytest.mark.parametrize(("slo_s", "refuse_left", "given_up"), [(10.0, 0.25, 1), (2.0, 0.25, 0), (10.0, 0.0, 0)])
def test_who_is_put_off_with_little_time_left_hears_of_it_at_once(
    slo_s: float, refuse_left: float, given_up: int
) -> None:
    world = LengthWorld(refuse_left=refuse_left)
    world.asks(16, NOW + 1.6, NOW + 1.7, slo_s=slo_s)  # one takes 1.5 s, and two take 2.5 s
    batch = world.policy.choose(world.device, NOW)
    assert batch is not None
    assert (len(batch.requests), len(batch.given_up)) == (1, given_up)


def test_who_is_put_off_waits_where_another_device_may_take_it_and_where_the_reserve_is_spent() -> None:
    for world in (LengthWorld(workers=("w1", "w2")), LengthWorld(reserve=0.1)):
        if len(world.state.devices) == 1:
            world.asks(1, NOW + 9.0)
            first = world.policy.choose(world.device, NOW)
            assert first is not None
            world.policy.bound(world.device, first, NOW)
            world.state.take(world.model(), list(first.requests))
        world.asks(16, NOW + 1.6, NOW + 1.7)
        batch = world.policy.choose(world.device, NOW)
        assert batch is not None
        assert not batch.given_up


def test_a_batch_waits_for_clients_that_return_as_with_other_models() -> None:
    """Those who come back are taken to ask as much as those who wait."""
    world = LengthWorld()
    model, now = world.model(), NOW
    for _ in range(20):  # eight clients, who are answered together and ask again at once
        made = world.asks(8, *[now + 10.0] * 8)
        world.policy.completed(world.device, model, made, now)
        for one in made:
            world.policy.admit(model, one, now + 0.001)
        world.state.take(model, made)
        now += 1.0
    world.policy.completed(world.device, model, made, now)
    back = world.asks(8, *[now + 10.0] * 4)
    for one in back:
        world.policy.admit(model, one, now + 0.0005)
    assert world.policy.choose(world.device, now + 0.0005) is None  # 2.5 s twice, or 4.5 s once
    assert world.policy.wake_at(now + 0.0005) == pytest.approx(now + 0.001, abs=0.0005)
    assert world.next(now=now + 0.01).rows == 4  # they did not come
