"""A version is its content: what a device has read is served as the catalogue has it, or not at all."""

import pytest

from controller.core.versions.preparation import Terms
from mesh import wire
from mesh.codes import ActionCode, ErrorCode, PackageCode
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared

NEW = {"a:1": Terms(pending=True)}  # nobody has served it
OLD = {"a:1": Terms(unserved=False)}  # current, and the catalogue has no content of it


def shard(terms: dict[str, Terms], *workers: str) -> Shard:
    """These have been told to prepare a:1."""
    made = Shard()
    made.scheduler.frontend_joined("f")
    made.want(["a:1"], terms=terms)
    for worker in workers:
        made.join(hello(worker), now=0.0)
    made.wake(0.0)
    return made


def brought(content: str) -> wire.Prepared:
    return prepared("a:1", TEN_MS, content=content)


def changed() -> wire.Prepared:
    return wire.Prepared(ref="a:1", ok=False, faults=("other files",), code=PackageCode.CONTENT_CHANGED)


def named(content: str, *, pending: bool = True, tries: int = 0) -> dict[str, Terms]:
    return {"a:1": Terms(content=content, pending=pending, tries=tries)}


def test_a_new_version_s_content_is_proposed_first_and_served_once_the_catalogue_has_it() -> None:
    made = shard(NEW, "w1")
    assert made.report(brought("A")) == ["broker: a:1 would be A"]
    assert made.submit(1, "a:1", now=10.0) == ["f: 1 rejected not_ready"]
    assert made.want(["a:1"], terms=named("A")) == ["broker: a:1 is ready", "f: serving +a:1"]
    assert made.submit(2, "a:1", now=10.0) == []


def test_a_current_version_without_a_known_content_waits_for_the_catalogue_as_well() -> None:
    made = shard(OLD, "w1")
    assert made.report(brought("A")) == ["broker: a:1 would be A"]
    assert made.want(["a:1"], terms={"a:1": Terms("A", unserved=False)}) == ["broker: a:1 is ready", "f: serving +a:1"]
    assert made.want(["a:1"], terms={"a:1": Terms("A", unserved=False)}) == []


def test_a_proposal_that_the_broker_did_not_hear_is_made_again() -> None:
    made = shard(NEW, "w1")
    made.report(brought("A"))
    assert made.want(["a:1"], terms=NEW) == ["broker: a:1 would be A"]
    made.want(["a:1"], terms=named("A"))
    assert made.want(["a:1"], terms=NEW) == ["broker: a:1 would be A", "f: serving -a:1"]  # the broker was started anew


def test_what_the_catalogue_knows_is_asked_for_and_served_at_once() -> None:
    made = Shard()
    made.want(["a:1"], terms=named("A"))
    made.join(hello("w1"), now=0.0)
    assert made.wake(0.0) == ["w1: prepare a:1 as A"]
    assert made.report(brought("A")) == ["broker: a:1 is ready"]


def test_a_device_that_reads_no_weights_is_served_without_a_content() -> None:
    assert shard(NEW, "w1").report(brought("")) == ["broker: a:1 is ready", "f: serving +a:1"]
    assert shard(named("A"), "w1").report(brought("")) == ["broker: a:1 is ready", "f: serving +a:1"]


def test_the_second_worker_forgets_what_the_first_did_not_read_and_reads_again() -> None:
    made = shard(NEW, "w1", "w2")
    made.report(brought("A"), "w2")
    assert made.report(brought("B"), "w1") == ["w1: forget a:1"]
    assert made.wake(0.0) == ["w1: prepare a:1 as A"]
    assert made.report(changed(), "w1") == []
    assert made.want(["a:1"], terms=named("A")) == ["broker: a:1 is ready", "f: serving +a:1"]
    assert made.wake(0.0) == ["w1: prepare a:1 as A", "w2: load #1 a:1"]


def test_a_worker_that_still_brings_something_else_is_not_asked_without_end() -> None:
    made = shard(named("A"), "w1")
    forget, failed = made.report(brought("B"))
    assert (forget, failed.partition(": ")[2][:10]) == ("w1: forget a:1", "a:1 failed")
    assert made.wake(0.0) == []


def test_what_a_worker_kept_from_before_the_controller_died_is_forgotten_if_it_is_something_else() -> None:
    made = Shard()
    made.want(["a:1"], terms=named("A"))
    words = hello("w1", brought("B"), resident=["a:1"])
    assert made.join(words, now=0.0) == ["w1: forget a:1", "w1: unload #0 a:1"]
    assert made.join(hello("w2", brought("A"), resident=["a:1"]), now=0.0) == ["broker: a:1 is ready"]
    assert made.wake(0.0) == ["w1: prepare a:1 as A"]


def test_the_catalogue_s_word_is_the_last() -> None:
    made = shard(NEW, "w1", "w2")
    made.report(brought("A"), "w1")
    made.report(brought("B"), "w2")
    made.wake(0.0)
    made.report(changed(), "w2")
    assert made.want(["a:1"], terms=named("B")) == ["w1: forget a:1"]
    assert made.wake(0.0) == ["w1: prepare a:1 as B", "w2: prepare a:1 as B"]
    assert made.report(brought("B"), "w2") == ["broker: a:1 is ready", "f: serving +a:1"]


def test_what_was_read_first_binds_nobody_once_nobody_has_it() -> None:
    made = shard(NEW, "w1", "w2")
    made.report(brought("A"), "w1")
    made.report(brought("B"), "w2")
    made.wake(0.0)
    made.report(changed(), "w2")
    made.lose("w1", now=1.0)
    assert made.wake(1.0) == ["w2: prepare a:1"]
    assert made.report(brought("B"), "w2") == ["broker: a:1 would be B"]


def test_a_result_by_which_nobody_has_what_was_read_first_frees_devices_that_had_nothing_to_do() -> None:
    made = shard(NEW, "w1", "w2")
    made.report(prepared("a:1", None, content="A", measure=((1, 1),)), "w1")
    assert made.report(brought("B"), "w2") == ["w2: forget a:1"]
    assert made.wake(0.0) == ["w1: load #1 a:1", "w1: infer #2 a:1 x1 measuring", "w2: prepare a:1 as A"]
    made.report(changed(), "w2")
    assert made.wake(1.0) == []
    assert made.state.devices["w2"].quiet_until_s > 1.0
    made.loaded(1, now=1.0, worker="w1")
    made.result(2, now=1.0, worker="w1", code=ActionCode.UNKNOWN_MODEL)
    assert made.wake(1.0) == ["w1: prepare a:1", "w2: prepare a:1"]


def test_a_failure_of_the_files_is_not_looked_at_again_as_long_as_another_device_has_the_right_ones() -> None:
    made = shard(NEW, "w1", "w2", "w3")
    made.report(brought("A"), "w1")
    made.report(brought("A"), "w2")
    made.report(brought("B"), "w3")
    made.wake(0.0)
    made.report(changed(), "w3")
    made.lose("w1", now=1.0)
    assert made.wake(1.0) == []


def test_the_broker_hears_that_nobody_has_a_version_any_more_when_the_last_that_had_it_is_gone() -> None:
    made = shard(named("A", pending=False), "w1", "w2")
    made.report(brought("A"), "w1")
    assert made.report(changed(), "w2") == []
    assert made.lose("w1", now=1.0) == ["broker: a:1 failed: other files", "f: serving -a:1"]


def test_a_request_for_a_version_that_no_device_can_prepare_is_told_why_and_not_to_come_again() -> None:
    made = shard(named("A", pending=False), "w1")
    made.report(changed())
    message = wire.Submit(request=1, attempt=0, ref="a:1", rows=1, budget_s=0.1)
    (order,) = made.scheduler.submit(message, "f", age_s=0.0, now=10.0, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.code, order.message.retry_after_s) == (ErrorCode.NOT_READY, None)
    assert "other files" in order.message.message


def test_what_failed_is_tried_again_with_each_time_that_it_is_asked_for() -> None:
    made = shard(named("A", pending=False, tries=1), "w1", "w2")
    made.report(changed(), "w1")
    assert made.report(changed(), "w2") == ["broker: a:1 failed: other files"]
    assert made.want(["a:1"], terms=named("A", pending=False, tries=1)) == []
    assert made.wake(0.0) == []
    made.want(["a:1"], terms=named("A", pending=False, tries=2))
    assert made.wake(0.0) == ["w1: prepare a:1 as A", "w2: prepare a:1 as A"]
    made.report(changed(), "w1")
    assert made.report(changed(), "w2") == ["broker: a:1 failed: other files"]


def test_a_version_deployed_again_soon_after_it_failed_is_tried_again() -> None:
    made = shard({"a:1": Terms(pending=True, tries=1)}, "w1")
    made.report(changed())
    made.want([], now=1.0)  # it is kept for a while
    made.want(["a:1"], terms={"a:1": Terms(pending=True, tries=2)}, now=1.5)
    assert made.wake(1.5) == ["w1: prepare a:1"]


@pytest.mark.parametrize(("unserved", "orders"), [(True, ["broker: a:1 is ready"]), (False, []), (None, [])])
def test_a_catalogue_that_believes_otherwise_is_told_again(unserved: bool | None, orders: list[str]) -> None:
    made = shard({"a:1": Terms("A", unserved=unserved)}, "w1")
    made.report(brought("A"))
    assert made.want(["a:1"], terms={"a:1": Terms("A", unserved=unserved)}) == orders


def test_a_catalogue_that_does_not_know_of_a_fault_is_told_again() -> None:
    made = shard({"a:1": Terms("A", unserved=False)}, "w1")
    assert made.report(changed()) == ["broker: a:1 failed: other files"]
    assert made.want(["a:1"], terms={"a:1": Terms("A", unserved=False)}) == ["broker: a:1 failed: other files"]
    assert made.want(["a:1"], terms={"a:1": Terms("A", unserved=True)}) == []


def test_a_worker_that_leaves_proposes_nothing_more() -> None:
    made = shard(NEW, "w1")
    made.report(brought("A"))
    made.leave("w1")
    assert made.want(["a:1"], terms=NEW) == []
    assert made.want(["a:1"], terms=named("A")) == []
