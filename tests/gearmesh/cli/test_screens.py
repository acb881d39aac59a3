"""gearmesh/cli/screens.py: what status and top show of two views of a mesh."""

import io

import msgspec
import pytest
from rich.console import Console

from frontend.admin.observer import View
from gearmesh.cli.screens import Screen, change
from mesh import wire
from mesh.facts import Snapshot
from tests.facts import FRONTEND, SNAPSHOT

replace = msgspec.structs.replace
MEMBERS = (
    wire.Member(id="controller-1", role="controller", host="h", endpoints={"control": ("memory://x", "tcp://h:1")}),
    wire.Member(id="frontend-1", role="frontend", host="h", endpoints={"clients": ("tcp://h:2",)}, pid=12),
    wire.Member(id="gpu_worker-1", role="gpu_worker", host="h"),
    wire.Member(id="gpu_worker-2", role="gpu_worker", host="h"),
)


def view(
    snapshot: Snapshot | None = SNAPSHOT, *, at_s: float = 10.0, frontend: bool = True, broker: bool = True
) -> View:
    """A view of a mesh."""
    snapshots = {"controller-1": snapshot} if snapshot is not None else {}
    return View(at_s, broker, 5, MEMBERS, snapshots, {"frontend-1": FRONTEND} if frontend else {})


def lines(before: View | None, after: View, width: int = 240, height: int | None = None) -> list[str]:
    """The screen; with a height, the live one."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(Screen(before, after, live=height is not None))
    return out.getvalue().splitlines()


def text(before: View | None, after: View) -> str:
    """The text of the screen without box characters."""
    return " ".join(" ".join(lines(before, after)).replace("│", " ").split())


def large(*, worker: str = "gpu_worker-0000000%d", devices: int = 8, models: int = 50) -> View:
    """A mesh with many devices and models with long names."""
    (device,), (model,) = SNAPSHOT.devices, SNAPSHOT.models
    snapshot = replace(
        SNAPSHOT,
        devices=tuple(
            replace(device, worker=worker % i, name=f"emulated:test/{i}", exec_busy_s=5.0 * i, pages=1024, free_pages=0)
            for i in range(devices)
        ),
        models=tuple(replace(model, ref=f"resnet50_v2_of_somebody.{i}:12", rate=float(i)) for i in range(models)),
        models_total=models,
    )
    members = [
        *MEMBERS[:2], *(wire.Member(id=worker % i, role="gpu_worker", host="h", pid=i) for i in range(devices)),
    ]  # fmt: skip
    return View(10.0, True, 5, members, {"controller-1": snapshot}, {"frontend-1": FRONTEND})


def later(seconds: float = 2.0) -> Snapshot:
    """The same controller `seconds` later, after 40 more in time and 10 more refused."""
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
        "p50/p99 of predictions: EXEC 2.0%/20.0%, LOAD 10.0%/30.0%, latency 10.0%/50.0%",
        "cpu:0 1 ██████ 75%",
        "2/8 1/2 1 m:1*",
        "m:1 1/1 5 25.0 20.0 80.0%",
        "10 lines in logs, 2 dropped",
        "answers: 82 ok, 8 rejected; in flight: 3; 4 dropped: clients gone, or not reading",
        "60.0% hits of 10, 1 shared an evaluation; 1.0 of 64 MiB",
        "paused: no [store]; 4 feedback held",
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


@pytest.mark.parametrize("width", [80, 120])
def test_every_number_is_readable_at_the_usual_widths(width: int) -> None:
    shown = lines(None, large(), width)
    assert all(len(line) <= width for line in shown)
    for i in range(8):
        (row,) = [line.split() for line in shown if f"test/{i} " in line]
        numbers = [f"0000000{i}", f"{i * 10}%", "2%", "1+0", "0.8", "0.1", "1024/1024", "1/2", "1"]
        assert [cell for cell in row if "█" not in cell][1:10] == numbers
    (row,) = [line.split() for line in shown if "somebody.49:12" in line]
    assert row[1:] == ["1/1", "5", "1.8", "1.6", "88.9%", "8", "2", "3"]
    assert not [line for line in shown if line.startswith(("…", "frontend-1")) and line.endswith("…")]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_top_fits_the_terminal_with_what_matters_most_first(width: int, height: int) -> None:
    shown = lines(None, large(), width, height)
    assert len(shown) <= height
    assert shown[0].startswith("11 members, all ok")
    assert shown[2].startswith("goodput")
    assert any(line.startswith("devices") for line in shown)
    busiest = next(line for line in shown if "test/" in line)
    assert "test/7" in busiest or height > 24
    assert any("somebody.49:12" in line for line in shown)


def test_top_names_only_members_that_are_not_well() -> None:
    (first, *_) = lines(None, view(), 80, 24)
    assert first.startswith("5 members, gpu_worker-2 no controller has it")
