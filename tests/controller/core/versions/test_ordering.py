"""controller/core/versions/ordering.py and unclaimed.py, gpu_worker/core/obeyed.py: numbers, and their bounds."""

import math
from typing import Any

import pytest

import controller.core.versions.ordering as ordering
import gpu_worker.core.obeyed as obeying
from controller.core.orders import ToWorker
from controller.core.versions.ordering import VersionOrders
from controller.core.versions.unclaimed import UNCLAIMED_S, UnclaimedVersions
from gpu_worker.core.obeyed import ObeyedOrders
from mesh import wire
from mesh.codes import PackageCode
from tests.controller.core.controller_builders import prepared


def number(order: ToWorker) -> int:
    assert isinstance(order.message, wire.Prepare | wire.Forget)
    return order.message.order


def report(ref: str, order: int) -> wire.Prepared:
    return wire.Prepared(ref=ref, ok=True, order=order)


def test_only_a_report_that_names_our_last_order_or_none_is_not_over() -> None:
    orders = VersionOrders("controller-1")
    assert not orders.is_over("w1", report("a:1", 77))  # we have ordered nothing
    first = number(orders.prepare("w1", "a:1", ""))
    last = number(orders.forget("w1", "a:1"))
    assert [orders.is_over("w1", report("a:1", order)) for order in (first, last, 77, 0)] == [True, False, True, False]
    assert not orders.is_over("w1", report("b:1", 77))
    assert not orders.is_over("w2", report("a:1", 77))


def test_numbers_fit_their_field_and_differ_between_lives() -> None:
    numbers = [number(VersionOrders(f"controller-{life}").prepare("w1", "a:1", "")) for life in range(1000)]
    assert len(set(numbers)) == 1000
    assert all(0 < each <= 1 << 62 for each in numbers)


def test_what_a_worker_was_told_is_remembered_until_many_others_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "GONE_MAX", 2)
    orders = VersionOrders()
    for worker in ("w1", "w2", "w3"):
        orders.prepare(worker, "a:1", "")
    orders.gone("w1")
    assert [orders.is_over(worker, report("a:1", 77)) for worker in ("w1", "w2", "w3")] == [True, False, True]


@pytest.mark.parametrize("module", [ordering, obeying])
def test_the_last_orders_of_so_many_versions_are_remembered(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSIONS_MAX", 2)
    orders, obeyed = VersionOrders(), ObeyedOrders()
    for ref in ("a:1", "b:1", "a:1", "c:1"):
        order = orders.prepare("w1", ref, "")
        assert isinstance(order.message, wire.Prepare)
        obeyed.obey(order.message)
    known = [ref for ref in ("a:1", "b:1", "c:1") if orders.is_over("w1", report(ref, 77))]
    named = [ref for ref in ("a:1", "b:1", "c:1") if obeyed.named(report(ref, 0)).order]
    assert (known, named) == (
        (["a:1", "c:1"], ["a:1", "b:1", "c:1"]) if module is ordering else (["a:1", "b:1", "c:1"], ["a:1", "c:1"])
    )


def test_a_report_that_cannot_be_sent_says_so_instead() -> None:
    obeyed = ObeyedOrders()
    obeyed.obey(wire.Prepare(ref="m:1", order=5))
    assert obeyed.named(prepared("m:1")) == wire.Prepared(
        **{name: getattr(prepared("m:1"), name) for name in wire.Prepared.__struct_fields__ if name != "order"}, order=5
    )
    bad = obeyed.named(prepared("m:1", wire.Profile(exec_s={1: math.nan}, load_s=1.0)))
    assert (bad.ref, bad.ok, bad.code, bad.order) == ("m:1", False, PackageCode.BAD_PACKAGE, 5)
    assert "exec_s" in bad.faults[0] or "float" in bad.faults[0]


def test_what_nobody_claims_is_due_after_a_while_and_what_is_claimed_is_not() -> None:
    unclaimed = UnclaimedVersions()
    for ref in ("a:1", "b:1", "c:1"):
        unclaimed.keep("w1", prepared(ref), 100.0)
    assert unclaimed.claim("w1", "b:1") == prepared("b:1")
    assert unclaimed.claim("w1", "b:1") is None
    unclaimed.changed("w1", prepared("c:1", pages=3))
    assert unclaimed.claim("w1", "c:1") == prepared("c:1", pages=3)
    assert unclaimed.due(100.0 + UNCLAIMED_S - 1e-6) == []
    assert unclaimed.due_at() == 100.0 + UNCLAIMED_S
    assert unclaimed.due(100.0 + UNCLAIMED_S) == [("w1", "a:1")]
    assert (unclaimed.kept, unclaimed.due_at()) == ({}, math.inf)
