"""broker/core/routing.py: members, and which controller owns what."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.routing import EPOCH_MAX, Routing
from mesh import wire

MODELS = [f"model-{i}" for i in range(60)]


def member(name: str, port: int = 1) -> wire.Member:
    """`controller-a`, `gpu_worker-1`, `frontend-x`: the role is the part before the dash."""
    endpoints = {"control": (f"tcp://127.0.0.1:{port}",)}
    return wire.Member(id=name, role=name.partition("-")[0], host="here", endpoints=endpoints)


def routing_of(*names: str) -> Routing:
    routing = Routing(epoch=100)
    for name in names:
        routing.register(member(name))
    return routing


def test_members_are_kept_in_order_of_registration_and_each_makes_an_epoch() -> None:
    routing = Routing(epoch=100)
    assert routing.register(member("frontend-x")) is True
    assert routing.register(member("controller-a")) is True
    assert list(routing.members) == ["frontend-x", "controller-a"]
    assert routing.epoch == 102
    assert routing.shards == {"controller-a": 102}


def test_a_member_registered_again_unchanged_makes_no_epoch() -> None:
    routing = routing_of("controller-a")
    assert routing.register(member("controller-a")) is False
    assert routing.epoch == 101


def test_a_member_with_new_endpoints_replaces_what_was_known_of_it() -> None:
    routing = routing_of("frontend-x")
    assert routing.register(member("frontend-x", port=2)) is True
    assert routing.members == {"frontend-x": member("frontend-x", port=2)}
    assert routing.epoch == 102


def test_a_controller_keeps_the_shard_epoch_that_it_brings() -> None:
    routing = Routing(epoch=100)
    routing.register(member("controller-a"), shard_epoch=7)
    routing.register(member("controller-b"))
    assert routing.shards == {"controller-a": 7, "controller-b": 102}


def test_whoever_leaves_makes_an_epoch_and_whoever_was_not_there_does_not() -> None:
    routing = routing_of("frontend-x")
    assert routing.leave("frontend-x") is True
    assert (routing.members, routing.epoch) == ({}, 102)
    assert routing.leave("frontend-x") is False
    assert routing.epoch == 102


def test_every_call_of_next_epoch_makes_one() -> None:
    routing = Routing(epoch=100)
    assert [routing.next_epoch(), routing.next_epoch(), routing.epoch] == [101, 102, 102]


# -- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_without_any_controller_has_none() -> None:
    assert routing_of("gpu_worker-1").workers == {}


def test_workers_that_came_first_are_dealt_when_a_controller_comes() -> None:
    routing = routing_of("gpu_worker-1", "gpu_worker-2", "controller-a")
    assert routing.workers == {"gpu_worker-1": "controller-a", "gpu_worker-2": "controller-a"}


def test_a_worker_goes_to_the_controller_with_fewest_and_ties_go_by_name() -> None:
    routing = routing_of("controller-b", "controller-a", "gpu_worker-1", "gpu_worker-2", "gpu_worker-3")
    assert routing.workers == {
        "gpu_worker-1": "controller-a",
        "gpu_worker-2": "controller-b",
        "gpu_worker-3": "controller-a",
    }


def test_workers_stay_where_they_are_when_another_controller_comes() -> None:
    routing = routing_of("controller-b", "gpu_worker-1", "gpu_worker-2", "controller-a", "gpu_worker-3")
    assert routing.workers == {
        "gpu_worker-1": "controller-b",
        "gpu_worker-2": "controller-b",
        "gpu_worker-3": "controller-a",
    }


def test_the_workers_of_a_controller_that_left_fall_to_the_others() -> None:
    routing = routing_of("controller-a", "controller-b", "gpu_worker-1", "gpu_worker-2", "gpu_worker-3")
    routing.leave("controller-a")
    assert routing.workers == dict.fromkeys(["gpu_worker-1", "gpu_worker-2", "gpu_worker-3"], "controller-b")
    routing.leave("controller-b")
    assert (routing.workers, routing.shards) == ({}, {})
    routing.register(member("controller-c"))
    assert routing.workers == dict.fromkeys(["gpu_worker-1", "gpu_worker-2", "gpu_worker-3"], "controller-c")


def test_a_worker_that_left_is_dealt_no_more() -> None:
    routing = routing_of("controller-a", "gpu_worker-1")
    routing.leave("gpu_worker-1")
    assert routing.workers == {}


# -- models -----------------------------------------------------------------------------------------------------------


def test_without_a_controller_nobody_owns_anything() -> None:
    assert routing_of("gpu_worker-1", "frontend-x").owners(MODELS) == {}


def test_one_controller_owns_everything() -> None:
    assert routing_of("controller-a").owners(MODELS) == dict.fromkeys(MODELS, "controller-a")


def test_models_go_to_controllers_with_workers_only_where_there_are_some() -> None:
    routing = routing_of("controller-a", "gpu_worker-1", "controller-b")
    assert routing.owners(MODELS) == dict.fromkeys(MODELS, "controller-a")


def test_models_are_shared_out_and_only_those_of_the_one_that_left_move() -> None:
    routing = routing_of("controller-a", "controller-b", "controller-c", "gpu_worker-1", "gpu_worker-2", "gpu_worker-3")
    before = routing.owners(MODELS)
    shares = [list(before.values()).count(controller) for controller in routing.shards]
    assert sum(shares) == 60
    assert min(shares) >= 10
    routing.leave("controller-c")
    after = routing.owners(MODELS)
    moved = [model for model in MODELS if before[model] != after[model]]
    assert moved == [model for model in MODELS if before[model] == "controller-c"]


def test_owners_do_not_depend_on_the_order_in_which_anybody_came() -> None:
    one = routing_of("controller-a", "controller-b", "gpu_worker-1", "gpu_worker-2")
    other = routing_of("gpu_worker-2", "controller-b", "gpu_worker-1", "controller-a")
    other.leave("gpu_worker-1")
    other.register(member("gpu_worker-1"))
    assert one.owners(MODELS) == other.owners(reversed(MODELS))


NAMES = [f"{role}-{i}" for role in ("controller", "gpu_worker", "frontend") for i in range(4)]


class AnyOrder(RuleBasedStateMachine):
    """Members come and go in any order; owners in the table are always members."""

    @initialize()
    def begin(self) -> None:
        self.routing = Routing(epoch=0)
        self.there: set[str] = set()
        self.epoch = 0

    @rule(name=st.sampled_from(NAMES), port=st.integers(1, 2))
    def register(self, name: str, port: int) -> None:
        known = self.routing.members.get(name)
        assert self.routing.register(member(name, port)) is (known != member(name, port))
        self.there.add(name)

    @rule(name=st.sampled_from(NAMES), seen=st.integers(0, 1 << 64))
    def register_with_what_was_seen(self, name: str, seen: int) -> None:
        before = self.routing.epoch
        told = self.routing.register(member(name), seen=seen)
        assert told or before >= seen or seen > EPOCH_MAX
        assert self.routing.epoch >= (seen if seen <= EPOCH_MAX else before)
        self.there.add(name)

    @rule(number=st.integers(0, 3), ahead=st.integers(-50, 50))
    def register_a_worker_that_has_obeyed_somebody(self, number: int, ahead: int) -> None:
        name = f"gpu_worker-{number}"
        epoch = max(0, self.routing.epoch + ahead)
        self.routing.register(member(name), epoch)
        self.there.add(name)
        owner = self.routing.workers.get(name)
        assert owner is None or self.routing.shards[owner] >= epoch  # else it would refuse all orders

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        assert self.routing.leave(name) is (name in self.there)
        self.there.discard(name)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "routing"):
            return
        routing = self.routing
        controllers = {name for name in self.there if name.startswith("controller")}
        workers = {name for name in self.there if name.startswith("gpu_worker")}
        assert routing.members.keys() == self.there
        assert routing.shards.keys() == controllers
        assert routing.workers.keys() == (workers if controllers else set())
        assert set(routing.workers.values()) <= controllers
        assert set(routing.owners(MODELS).values()) <= (set(routing.workers.values()) or controllers)
        assert routing.epoch >= self.epoch
        self.epoch = routing.epoch
        routing.check()


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize("shard_epoch", [0, 7])
def test_a_controller_that_comes_back_with_its_epoch_keeps_it_at_a_new_broker(shard_epoch: int) -> None:
    routing = Routing(epoch=2 << 32)
    routing.register(member("controller-a"), shard_epoch)
    assert routing.shards == {"controller-a": shard_epoch or (2 << 32) + 1}


# -- epochs never go back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frontend-x", "controller-a", "gpu_worker-1"])
@pytest.mark.parametrize("known", [False, True])
def test_whatever_epoch_a_member_has_seen_the_next_is_above_it(name: str, known: bool) -> None:
    routing = routing_of(name) if known else Routing(epoch=100)
    assert routing.register(member(name), seen=5000) is True  # so everybody gets a table
    assert routing.next_epoch() > 5000


def test_an_epoch_that_no_catalogue_could_keep_is_not_believed() -> None:
    routing = Routing(epoch=100)
    routing.register(member("frontend-x"), seen=EPOCH_MAX + 1)
    routing.register(member("controller-a"), EPOCH_MAX + 1)
    assert (routing.epoch, routing.shards) == (102, {"controller-a": 102})
    routing.check()


def test_the_workers_of_a_newer_controller_that_left_obey_the_older_one() -> None:
    routing = routing_of("controller-a", "gpu_worker-1", "controller-b", "gpu_worker-2")
    assert routing.workers == {"gpu_worker-1": "controller-a", "gpu_worker-2": "controller-b"}
    before = routing.shards["controller-b"]
    routing.leave("controller-b")
    assert routing.workers == dict.fromkeys(["gpu_worker-1", "gpu_worker-2"], "controller-a")
    assert routing.shards["controller-a"] > before


def test_a_controller_with_one_worker_of_its_own_keeps_its_shard_when_another_leaves_that_had_none() -> None:
    routing = routing_of("controller-a", "gpu_worker-1", "controller-b")
    before = routing.shards["controller-a"]
    routing.leave("controller-b")
    assert routing.shards == {"controller-a": before}


def test_a_controller_that_came_before_a_worker_of_a_newer_shard_gets_a_newer_one() -> None:
    """After the broker was started again, with its clock set back and without its catalogue."""
    routing = routing_of("controller-b")
    assert routing.shards == {"controller-b": 101}
    routing.register(member("gpu_worker-1"), 7000, seen=7005)
    assert routing.workers == {"gpu_worker-1": "controller-b"}
    assert routing.shards["controller-b"] > 7000
    assert routing.next_epoch() > 7005


def test_a_worker_that_waited_for_a_controller_obeys_the_one_that_comes_back_with_an_old_shard() -> None:
    routing = routing_of("controller-a", "controller-b", "gpu_worker-1", "gpu_worker-2")
    old, newest = routing.shards["controller-a"], routing.shards["controller-b"]
    for controller in ("controller-a", "controller-b"):
        routing.leave(controller)
    routing.register(member("controller-a"), old)
    assert routing.workers == dict.fromkeys(["gpu_worker-1", "gpu_worker-2"], "controller-a")
    assert routing.shards["controller-a"] > newest


@pytest.mark.parametrize(
    ("new", "replaced"),
    [
        (member("controller-b"), ["controller-a"]),  # at the same address
        (member("controller-b", port=2), []),
        (member("controller-a"), []),  # it is the same one
        (member("frontend-b"), []),
        (
            wire.Member(id="controller-b", role="controller", host="there", endpoints=member("controller-b").endpoints),
            [],
        ),
    ],
    ids=lambda value: value.id if isinstance(value, wire.Member) else "",
)
def test_a_controller_that_listens_at_another_one_s_address_replaces_it(new: wire.Member, replaced: list[str]) -> None:
    assert routing_of("controller-a", "frontend-x").replaced_by(new) == replaced
