"""controller/core/versions/reasons.py: every refusal of a version has a code and some reason."""

from collections.abc import Sequence

import pytest

from controller.core.orders import ToFrontend
from mesh import wire
from mesh.codes import ActionCode, ErrorCode, PackageCode
from tests.controller.core.controller_builders import Shard, hello, one

REF = "m:1"


def refusal(shard: Shard) -> wire.Refused:
    """What a request for the version is told at once."""
    message = wire.Submit(request=1, attempt=0, ref=REF, rows=1, budget_s=1.0)
    (order,) = shard.scheduler.submit(message, "f", age_s=0.0, now=100.0, hollow=True)
    assert isinstance(order, ToFrontend)
    assert isinstance(order.message, wire.Refused)
    return order.message


@pytest.mark.parametrize("faults", [(), ("no such file",), ("no such file", "no labels")])
def test_a_version_that_no_device_can_prepare_is_refused_whether_or_not_they_say_why(faults: Sequence[str]) -> None:
    shard = Shard()
    shard.want([REF])
    shard.join(hello("w1"), now=0.0)
    shard.report(wire.Prepared(ref=REF, ok=False, faults=tuple(faults), code=PackageCode.BAD_PACKAGE))
    refused = refusal(shard)
    assert (refused.code, refused.retry_after_s) == (ErrorCode.NOT_READY, None)
    assert all(fault in refused.message for fault in faults[:1])


def test_a_request_whose_version_fails_without_a_reason_meanwhile_is_refused_and_not_planned_again() -> None:
    shard = one()
    assert shard.submit(1, REF, now=100.0, budget_s=10.0) == []
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    shard.report(wire.Prepared(ref=REF, ok=False, code=PackageCode.BAD_PACKAGE), now=100.001)
    assert shard.result(1, now=100.002, code=ActionCode.UNKNOWN_MODEL) == ["f: 1 rejected not_ready"]


def test_a_version_nobody_wants_and_a_shard_without_workers_have_codes_of_their_own() -> None:
    shard = Shard()
    assert refusal(shard).code == ErrorCode.NOT_DEPLOYED
    shard.want([REF])
    assert refusal(shard).code == ErrorCode.NO_WORKER
    shard.want([REF], contained=[REF])
    assert refusal(shard).code == ErrorCode.NO_REPLICA
    shard.want([REF])
    shard.join(hello("w1"), now=0.0)
    assert refusal(shard).code == ErrorCode.NOT_READY
