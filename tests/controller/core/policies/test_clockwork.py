"""controller/core/policies/clockwork.py: what its counts of demand meet when versions come and go."""

from controller.core.policies.registry import make_policy
from controller.core.scheduler import Scheduler
from mesh import wire
from mesh.codes import PackageCode
from tests.controller.core.controller_builders import Shard, hello, prepared


def test_demand_for_a_version_that_was_let_go_counts_for_nothing_where_it_still_lies_in_memory() -> None:
    shard = Shard()
    shard.scheduler = Scheduler(make_policy("clockwork", shard.state), shard.state)
    shard.want(["a:1", "b:1"])
    shard.join(hello("w1", prepared("a:1"), prepared("b:1"), resident=["a:1"]), now=100.0)
    unmeasured = prepared("a:1", None, measure=((1, 1),))
    shard.join(hello("w2", unmeasured, prepared("b:1"), resident=["a:1", "b:1"]), now=100.0)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    assert "w1: infer #1 a:1 x1 f/1" in shard.wake(100.0)
    shard.report(wire.Prepared(ref="a:1", ok=False, faults=("no",), code=PackageCode.BAD_PACKAGE), "w1", now=100.001)
    shard.want(["b:1"], now=100.002)
    assert "a:1" not in shard.state.models
    for number in range(2, 40):
        shard.submit(number, "b:1", now=100.003, budget_s=0.1)
    assert any(order.startswith("w1: load") for order in shard.wake(100.003))
