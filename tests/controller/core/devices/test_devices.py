"""controller/devices: one interface, and what its two makes say to the same questions."""

import ast
import math

import pytest

from controller.core.devices.action import OVERDUE_FACTOR, Action
from controller.core.devices.base import RemoteDevice
from controller.core.devices.black_box import (
    COLD_S,
    HANGS_AFTER_S,
    LAST_WORD_S,
    NOISE,
    SILENCE_S,
    STUCK_LOOK_S,
    BlackBox,
)
from controller.core.devices.factory import make_device
from controller.core.devices.paged import PagedDevice
from mesh import wire
from mesh.codes import ActionKind
from scripts import ROOT
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared, request, spec

OWN = "f:1"
NOW = 100.0


def made(container: str = "") -> RemoteDevice:
    """A new worker's device, a container if it is to serve a ref."""
    info = wire.DeviceInfo(name="d", kind="k", pages=4, page_bytes=1, any_batch=True, container=container)
    words = wire.WorkerHello(member="w", host="h", device=info, free_pages=4, resident=("a:1",), prepared=())
    return make_device(words, dispatch_s=0.001, noise=0.05, now=NOW)


def paged() -> RemoteDevice:
    """A device that has "m:1" ready, but not resident."""
    device = made()
    device.prepared("m:1", 2)
    device.add(prepared("m:1", TEN_MS), spec(), ())
    return device


def black_box() -> RemoteDevice:
    """A container that is ready."""
    device = made(OWN)
    device.add(of_container(), spec(64), ())
    return device


def of_container() -> wire.Prepared:
    batching = wire.Batching(method="fixed", size=8, objective_s=0.02)
    return wire.Prepared(ref=OWN, ok=True, spec=spec(64), pages=1, batching=batching)


def test_a_black_box_holds_its_own_version_and_a_paged_device_what_containers_do_not_serve() -> None:
    assert made(OWN).may_hold(OWN, contained=True)
    assert not made(OWN).may_hold("g:1", contained=True)
    assert not made().may_hold(OWN, contained=True)
    assert made().may_hold("m:1", contained=False)


def test_a_new_device_is_free_from_now_on_and_starts_from_the_margins_of_its_make() -> None:
    for device, noise in ((made(), 0.05), (made(OWN), NOISE)):
        assert device.exec.free_at(0.0) == device.load.free_at(0.0) == NOW
        assert (device.dispatch.value_s, device.noise.value_s) == (0.001, noise)


def test_what_is_ready_on_a_black_box_is_resident_and_on_a_paged_device_only_after_a_load() -> None:
    assert list(black_box().residency.models) == [OWN]
    assert list(paged().residency.models) == []


def test_a_report_is_whole_with_what_the_make_is_planned_by() -> None:
    assert made().is_whole(prepared("m:1", TEN_MS))
    assert not made().is_whole(prepared("m:1", None))
    assert made(OWN).is_whole(of_container())
    assert not made(OWN).is_whole(prepared(OWN, TEN_MS))


@pytest.mark.parametrize(("hosts", "latest_s"), [(1, NOW + 1.0), (2, NOW + 0.5)])
def test_a_batch_for_a_replica_has_half_of_its_time_to_start_if_another_could_take_it(
    hosts: int, latest_s: float
) -> None:
    assert black_box().latest_s(NOW, NOW + 1.0, hosts) == latest_s
    assert paged().latest_s(NOW, NOW + 1.0, hosts) == NOW + 1.0


def test_a_paged_device_is_asked_again_when_its_batch_is_due_and_a_black_box_soon() -> None:
    assert paged().next_batch_at(NOW + 1.0, NOW) == NOW + 1.0
    assert paged().next_batch_at(NOW, NOW) == math.inf
    assert black_box().next_batch_at(NOW + 1.0, NOW) == NOW + 1.0
    assert black_box().next_batch_at(NOW, NOW) == NOW + STUCK_LOOK_S


def test_an_idle_black_box_is_doubted_after_a_silence() -> None:
    device = black_box()
    device.curves[OWN].learned_s = NOW
    one = request(ref=OWN, deadline_s=NOW)
    assert not device.doubt(one, NOW + SILENCE_S)
    assert device.doubt(one, NOW + SILENCE_S + 1e-6)
    assert not device.doubt(one, NOW + SILENCE_S + 2e-6)


def test_only_a_black_box_s_worker_is_told_by_when_a_batch_hangs() -> None:
    shard = Shard().serve({"m:1": TEN_MS})
    shard.submit(1, now=NOW, budget_s=1.0)
    shard.wake(NOW)
    (action,) = shard.state.devices["w1"].actions.values()
    assert (action.hangs_s, action.cold_s) == (0.0, 0.0)
    assert action.overdue_s == action.usual_overdue_s


def test_a_process_starts_from_what_the_one_before_it_has_shown() -> None:
    device = black_box()
    for _ in range(20):
        device.curves[OWN].learn(1, 0.5)
    assert not device.failed(OWN)
    device.remove(OWN)
    device.add(of_container(), spec(64), ())
    assert device.curves[OWN].exec_s(1) == pytest.approx(0.5, rel=0.05)


def test_a_paged_device_has_to_prepare_anew_what_failed() -> None:
    assert paged().failed("m:1")


def test_a_worker_s_first_words_are_for_its_make_to_judge() -> None:
    words = hello("w", resident=["a:1"])
    assert (list(made().found_resident(words)), made().keeps_unwanted()) == (["a:1"], False)
    assert (list(made(OWN).found_resident(words)), made(OWN).keeps_unwanted()) == ([], True)


def test_a_black_box_hangs_only_after_the_last_deadline_of_its_batch() -> None:
    device = black_box()
    action = Action(
        1, ActionKind.INFER, OWN, NOW, 0.01, requests=[request(1, deadline_s=NOW + 5), request(2, deadline_s=NOW)]
    )
    device.infer_sent(action, NOW, NOW + 1.0, NOW)
    assert action.hangs_s == NOW + 5 + HANGS_AFTER_S + OVERDUE_FACTOR * 0.01
    assert action.overdue_s == action.hangs_s + COLD_S + LAST_WORD_S
    assert device.overdue_s == action.overdue_s
    device.check()


def abstract_methods() -> list[str]:
    """What the makes of devices have to say: marked in the source, as the compiled form keeps no marks."""
    tree = ast.parse((ROOT / "controller/core/devices/base.py").read_text())
    device = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RemoteDevice")
    methods = [node for node in device.body if isinstance(node, ast.FunctionDef)]
    return [each.name for each in methods if "abstractmethod" in map(ast.unparse, each.decorator_list)]


@pytest.mark.parametrize("make", [BlackBox, PagedDevice])
def test_a_make_of_devices_leaves_nothing_unsaid(make: type[RemoteDevice]) -> None:
    wanted = abstract_methods()
    assert len(wanted) > 5
    assert [name for name in wanted if name not in vars(make)] == []
