"""scripts/screens.py: what status and top say of two looks at a mesh."""

import io

import msgspec
import pytest
from rich.console import Console

from broker import wire
from broker.facts import Snapshot
from frontend.observer import View
from scripts.screens import change, screen
from tests.facts import SNAPSHOT

replace = msgspec.structs.replace
MEMBERS = (
    wire.Member(id="controller-1", role="controller", host="h", endpoints={"control": ("memory://x", "tcp://h:1")}),
    wire.Member(id="frontend-1", role="frontend", host="h", endpoints={"clients": ("tcp://h:2",)}, pid=12),
    wire.Member(id="gpu_worker-1", role="gpu_worker", host="h"),
    wire.Member(id="gpu_worker-2", role="gpu_worker", host="h"),
)
FRONTEND = {"answers": {"ok": 82, "rejected": 8}, "in_flight": 3}


def view(
    snapshot: Snapshot | None = SNAPSHOT, *, at_s: float = 10.0, frontend: bool = True, broker: bool = True
) -> View:
    """A look at a mesh."""
    snapshots = {"controller-1": snapshot} if snapshot is not None else {}
    return View(at_s, broker, 5, MEMBERS, snapshots, {"frontend-1": FRONTEND} if frontend else {})


def text(before: View | None, after: View) -> str:
    """The screen, without its lines."""
    out = io.StringIO()
    Console(file=out, width=240, color_system=None).print(screen(before, after))
    return " ".join(out.getvalue().replace("│", " ").split())


def later(seconds: float = 2.0) -> Snapshot:
    """The same controller a while later, after 40 more in time and 10 more refused."""
    (device,) = SNAPSHOT.devices
    (model,) = SNAPSHOT.models
    return replace(
        SNAPSHOT, now_s=SNAPSHOT.now_s + seconds, submitted=150, in_time=120, refused={"deadline": 16, "overload": 2},
        batches=60, batched_rows=150, devices=(replace(device, exec_busy_s=device.exec_busy_s + 1.5, batches=60),),
        models=(replace(model, in_time=120, refused=18),),
    )  # fmt: skip


def test_a_change_is_the_difference_of_two_looks() -> None:
    made = change(view(), view(later(), at_s=12.0))
    assert (made.seconds, made.in_time, made.late, made.submitted, made.refused) == (2.0, 40, 0, 50, {"deadline": 10})
    assert (made.attainment, made.per_s(made.in_time)) == (0.8, 20.0)


def test_one_look_alone_is_since_the_start_and_so_is_a_controller_that_is_new() -> None:
    assert change(None, view()).in_time == 80
    assert change(None, view()).seconds == 50.0
    assert change(view(None), view(at_s=12.0)).in_time == 80


def test_without_requests_there_is_no_attainment() -> None:
    assert change(view(), view(at_s=11.0)).attainment is None


def test_the_screen_shows_rates_shares_reasons_and_errors_of_prediction() -> None:
    said = text(view(), view(later(), at_s=12.0))
    for expected in (
        "goodput 20.0/s of 25.0/s offered",
        "attainment 80.00%",
        "refused 10 deadline",
        "mean batch 3.0 rows",
        "latency p50 20.00 ms, p99 40.00 ms",
        "EXEC p50 2.0% p99 20.0%; LOAD p50 10.0% p99 30.0%; latency p50 10.0% p99 50.0%",
        "cpu:0 gpu_worker-1 ██████ 75%",
        "2 of 8 1 of 2 1 m:1*",
        "m:1 1 of 1 5 25.0 20.0 80.00%",
        "10 lines in logs, 2 dropped",
        "answers: 82 ok, 8 rejected; in flight: 3",
    ):
        assert expected in said


def test_everybody_s_health_is_shown() -> None:
    said = text(None, view())
    for expected in (
        "broker broker ok", "controller-1 controller 0 ok tcp://h:1", "frontend-1 frontend 12 ok tcp://h:2",
        "gpu_worker-1 gpu_worker 0 ok", "gpu_worker-2 gpu_worker 0 no controller has it",
    ):  # fmt: skip
        assert expected in said


def test_who_is_silent_is_shown_as_such() -> None:
    said = text(None, view(None, frontend=False, broker=False))
    for name in ("broker broker", "controller-1 controller 0", "frontend-1 frontend 12"):
        assert f"{name} silent" in said
    assert "goodput" not in said


@pytest.mark.parametrize(
    ("changes", "expected"), [({"heard_ago_s": 1.2}, "silent for 1.2 s"), ({"leaving": True}, "leaving")]
)
def test_a_worker_s_health_is_what_its_controller_says(changes: dict[str, object], expected: str) -> None:
    (device,) = SNAPSHOT.devices
    assert expected in text(None, view(replace(SNAPSHOT, devices=(replace(device, **changes),))))
