"""gearmesh/cli/screens.py: what status and top show of two looks at a mesh.

How a figure is worded is the screen's affair: tests look up a row and a column by their heads, and read figures there.
"""

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from frontend.admin.observer import View
from gearmesh.cli.screens import Screen, change, devices_table, members_line, members_table, models_table, summary
from gearmesh.cli.screens.links import unwell_links
from mesh import wire
from mesh.facts import Snapshot
from tests.facts import FRONTEND, OUTCOMES, SNAPSHOT, M, tally
from tests.messages import names

replace = msgspec.structs.replace
MEMBERS = (
    wire.Member(id="controller-1", role="controller", host="h", endpoints={"control": ("memory://x", "tcp://h:1")}),
    wire.Member(id="frontend-1", role="frontend", host="h", endpoints={"clients": ("tcp://h:2",)}, pid=12),
    wire.Member(id="gpu_worker-1", role="gpu_worker", host="h"),
    wire.Member(id="gpu_worker-2", role="gpu_worker", host="h"),  # no controller has it
)


def view(
    snapshot: Snapshot | None = SNAPSHOT,
    *,
    at_s: float = 10.0,
    frontend: bool = True,
    broker: bool = True,
    outcomes: Mapping[str, Any] = OUTCOMES,
) -> View:
    """A look at a mesh."""
    snapshots = {"controller-1": snapshot} if snapshot is not None else {}
    silent: dict[str, float | None] = {} if snapshots else {"controller-1": 4.2}
    told = {"frontend-1": {**FRONTEND, "outcomes": outcomes}} if frontend else {}
    return View(at_s, broker, 5, MEMBERS, snapshots, told, silent=silent)


def grown(told: Mapping[str, Any], **more: int) -> dict[str, Any]:
    """The tally after so many more requests."""
    counts = {name: told[name] + more.get(name, 0) for name in told if name not in ("offered", "latency_s")}
    return tally(**counts)


MORE = {"ok": 40, "in_time": 40, "rejected": 7, "timed_out": 3, "cancelled": 2}
AFTER = {**OUTCOMES, "total": grown(OUTCOMES["total"], **MORE), "models": {"m": grown(M, **MORE)}}  # type: ignore[arg-type]


def after_it() -> View:
    """Two seconds later than `view()`."""
    return view(later(), at_s=12.0, outcomes=AFTER)


def later(seconds: float = 2.0) -> Snapshot:
    """The same controller a while later, after 40 more in time and 10 more refused."""
    (device,) = SNAPSHOT.devices
    (model,) = SNAPSHOT.models
    return replace(
        SNAPSHOT, now_s=SNAPSHOT.now_s + seconds, submitted=150, in_time=120, refused={"deadline": 16, "overload": 2},
        batches=60, batched_rows=150, devices=(replace(device, exec_busy_s=device.exec_busy_s + 1.5, batches=60),),
        models=(replace(model, in_time=120, refused=18),),
    )  # fmt: skip


def large(*, worker: str = "gpu_worker-0000000%d", devices: int = 8, models: int = 50) -> View:
    """A mesh with many devices and models, whose names are long."""
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
    told = {f"resnet50_v2_of_somebody.{i}": M for i in range(models)}
    frontend = {**FRONTEND, "outcomes": {**OUTCOMES, "models": told}}
    return View(10.0, True, 5, members, {"controller-1": snapshot}, {"frontend-1": frontend})


def cells(table: Table) -> list[list[str]]:
    """The text of each row's cells."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def rows(table: Table) -> dict[str, dict[str, str]]:
    """{first cell: {head: cell}}."""
    heads = [str(column.header) for column in table.columns]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in cells(table)}


def facts(before: View | None, after: View) -> dict[str, str]:
    """{what: said of it}, of the requests."""
    return {row[0].strip(): row[1] for row in cells(summary(before, after, 240))}


def healths(after: View) -> dict[str, str]:
    """{member: its health}."""
    return {name: row["health"] for name, row in rows(members_table(after)).items()}


def lines(before: View | None, after: View, width: int = 240, height: int | None = None) -> list[str]:
    """The screen; with a height, the live one."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(Screen(before, after, live=height is not None))
    return out.getvalue().splitlines()


def first_line(shown: list[str], *named: str) -> int:
    """Where the first line is in which all of these are."""
    return next(i for i, line in enumerate(shown) if all(name in line for name in named))


# -- what happened between two looks ----------------------------------------------------------------------------------


def test_what_padding_wastes_is_shown_where_models_have_open_dimensions() -> None:
    padded = replace(later(), elements=300, elements_computed=400)
    assert (
        facts(view(), view(padded, at_s=12.0))["padding"] == "25% of what was computed, of models with open dimensions"
    )
    assert "padding" not in facts(view(), after_it())


def test_a_change_is_the_difference_of_two_looks() -> None:
    made = change(view(), after_it())
    told = made.requests
    assert (made.seconds, told.in_time, told.late, told.offered, made.refused) == (2.0, 40, 0, 50, {"deadline": 10})
    assert (told.timed_out, told.rejected, told.cancelled) == (3, 7, 2)
    assert (told.attainment, made.per_s(told.in_time)) == (0.8, 20.0)


def test_one_look_alone_is_since_the_start_and_so_is_a_member_that_is_new() -> None:
    assert (change(None, view()).requests.in_time, change(None, view()).batches) == (92, 40)
    assert change(None, view()).seconds == 50.0
    assert change(view(None), view(at_s=12.0)).batches == 40
    assert change(view(frontend=False), view(at_s=12.0)).requests.in_time == 92


def test_a_frontend_that_is_silent_for_a_look_takes_nothing_away() -> None:
    assert change(view(), view(at_s=12.0, frontend=False)).requests.offered == 0


def test_without_requests_there_is_no_attainment() -> None:
    assert change(view(), view(at_s=11.0)).requests.attainment is None


def test_what_clients_cancelled_was_neither_kept_nor_broken() -> None:
    only = {**OUTCOMES, "total": grown(OUTCOMES["total"], ok=1, in_time=1, cancelled=99)}  # type: ignore[arg-type]
    assert change(view(), view(at_s=11.0, outcomes=only)).requests.attainment == 1.0


def test_a_container_that_sleeps_through_its_objective_is_seen_to_keep_none() -> None:
    slow = {**OUTCOMES, "total": tally(timed_out=6), "models": {"m": tally(timed_out=6)}}
    seen = view(replace(SNAPSHOT, in_time=0, refused={}, timed_out=6), outcomes=slow)
    assert names(facts(None, seen)["attainment"], "0.00%", "6 timed_out")
    assert names(facts(None, seen)["goodput"], "0.0/s")
    row = rows(models_table(None, seen, 120, 20))["m:1"]
    assert (row["in time"], row["timed_out"], row["req/s"]) == ("0.0%", "6", "0.1")


# -- requests, devices and models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "figures"),
    [
        ("goodput", ("20.0/s", "25.0/s")),
        ("attainment", ("80.00%", "3 timed_out", "7 rejected", "2 cancelled")),
        ("refused", ("10 deadline",)),
        ("mean batch", ("3.0",)),
        ("latency", ("20.00", "40.00", 82)),
        ("error", ("EXEC 2.0%/20.0%", "LOAD 10.0%/30.0%", "latency 10.0%/50.0%")),
        ("logs", (10, "logs", 2)),
        ("frontend-1", ("82 ok", "8 rejected", 3, 4)),
        ("cache", ("60.0%", 10, 1, "1.0", 64)),
        ("learning", ("paused: no [store]", 4)),
    ],
)
def test_the_screen_tells_of_requests_what_happened_between_the_looks(what: str, figures: tuple[object, ...]) -> None:
    assert names(facts(view(), after_it())[what], *figures)


def test_the_screen_shows_all_that_is_told_of_requests_devices_and_models() -> None:
    before, after = view(), after_it()
    shown = lines(before, after)
    for label, said in facts(before, after).items():
        assert first_line(shown, label, said)
    assert first_line(shown, "cpu:0", "75%")
    assert first_line(shown, "m:1", "25.0", "20.0", "80.0%")


@pytest.mark.parametrize(
    ("row", "figures"),
    [
        ("tried apart", (8 + 4, 0.75, 1)),
        ("suspects", (7, "192.0.2.7:4711", "[red]:pill:", "m:1", "container_died")),
        ("turned away", (6,)),
        ("turned away", (9,)),
    ],
)
def test_who_harms_others_and_who_was_turned_away_is_shown_as_it_is_named(
    row: str, figures: tuple[object, ...]
) -> None:
    shown = [line for line in lines(None, view()) if line.strip().startswith(row)]
    assert any(names(line, *figures) for line in shown), shown


@pytest.mark.parametrize("serves", [True, False])
def test_a_container_is_starting_until_it_serves_whoever_tells_of_it(serves: bool) -> None:
    child = wire.ChildState(model="mine", serves=serves, for_s=12.0, starts=2, line="weights", why="SIGKILL")
    told = wire.Member(id="gpu_worker-1", role="gpu_worker", host="", child=child)  # a frontend tells of no offer
    seen = view()
    seen.members = (*(member for member in MEMBERS if member.id != told.id), told)
    health = healths(seen)[told.id]
    assert names(health, "SIGKILL")
    assert names(health, "weights") != serves


def test_a_device_s_lanes_pages_and_models_are_shown() -> None:
    row = rows(devices_table(view(), view(later(), at_s=12.0), 240))["cpu:0"]
    (*figures, last) = list(row.values())
    assert figures[:2] == ["cpu:0", "1"]
    assert names(row["EXEC"], "75%")
    assert row["EXEC"].count("█") == 6, "of 8, as wide as this screen is"
    assert row["batch/s"] == "10.0"
    assert (row["pages"], row["models"], row["failed"]) == ("2/8", "1/2", "1")
    assert names(last, "m:1")


def test_models_that_are_loaded_or_run_on_a_device_are_marked_as_such() -> None:
    (device,), shown = SNAPSHOT.devices, set()
    for state in ("ready", "loading", "running"):
        places = (replace(device.places[0], state=state),)
        table = devices_table(None, view(replace(SNAPSHOT, devices=(replace(device, places=places),))), 240)
        shown.add(cells(table)[0][-1])
    assert len(shown) == 3
    assert "m:1" in shown


def test_a_model_s_devices_queue_rates_and_attainment_are_shown() -> None:
    (row,) = rows(models_table(view(), after_it(), 240, 20)).values()
    assert list(row.values()) == ["m:1", "1/1", "5", "25.0", "20.0", "80.0%", "7", "3", "0", "0"]


def test_a_model_that_no_frontend_tells_apart_is_not_said_to_be_idle() -> None:
    elsewhere = {**OUTCOMES, "models": {}, "other_models": tally(ok=1)}
    row = rows(models_table(None, view(outcomes=elsewhere), 240, 20))["m:1"]
    assert (row["req/s"], row["in time"], row["timed_out"]) == ("-", "-", "-")
    never = {**OUTCOMES, "models": {}}
    assert rows(models_table(None, view(outcomes=never), 240, 20))["m:1"]["req/s"] == "0.0"


def test_two_versions_of_a_model_show_its_requests_once() -> None:
    (model,) = SNAPSHOT.models
    both = replace(SNAPSHOT, models=(model, replace(model, ref="m:2", rate=1.0)))
    shown = rows(models_table(None, view(both), 240, 20))
    assert (shown["m:1"]["timed_out"], shown["m:2"]["timed_out"]) == ("6", "-")


# -- links ------------------------------------------------------------------------------------------------------------


def test_links_that_are_down_silent_or_were_replaced_lately_are_told_of() -> None:
    told = facts(None, view())
    assert told["to gpu_worker-1"] == (
        "link replaced, lost 5 s ago: it was silent for too long (2 times so far); 12 messages came again"
    )
    assert told["to gpu_worker-2"] == "link down, lost 70 s ago: it closed the connection"
    assert told["to controller-1"] == "link silent for 1.3 s"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, []),
        ({"heard_ago_s": 0.9, "lost": 1, "lost_ago_s": 61.0, "why": "left"}, []),
        ({"up": False, "heard_ago_s": None}, [("peer", "link down, never heard")]),
        ({"heard_ago_s": None}, []),  # in the same process
    ],
)
def test_links_that_are_well_are_not_told_of(fields: dict[str, Any], told: list[tuple[str, str]]) -> None:
    well = {
        "peer": "peer", "role": "gpu_worker", "up": True, "heard_ago_s": 0.1, "lost": 0, "lost_ago_s": None,
        "why": None, "resent": 0,
    }  # fmt: skip
    assert [(peer, how.plain) for peer, how in unwell_links({"links": [well | fields]})] == told


# -- members ----------------------------------------------------------------------------------------------------------


def test_everybody_is_shown_with_its_role_process_and_address() -> None:
    shown = rows(members_table(view()))
    assert [(row["role"], row["pid"], row["address"]) for row in shown.values()] == [
        ("broker", "", ""),
        ("controller", "0", "tcp://h:1"),
        ("frontend", "12", "tcp://h:2"),
        ("gpu_worker", "0", ""),
        ("gpu_worker", "0", ""),
    ]
    screen = lines(None, view())
    for name, row in shown.items():
        assert first_line(screen, name, row["role"], row["health"], row["address"])


def test_who_answers_is_well_and_a_worker_that_no_controller_has_is_not() -> None:
    found = healths(view())
    assert found["broker"] == found["controller-1"] == found["frontend-1"] == found["gpu_worker-1"]
    assert found["gpu_worker-2"] != found["broker"]


def test_who_is_silent_is_shown_as_such() -> None:
    well, found = healths(view())["broker"], healths(view(None, frontend=False, broker=False))
    silence = found["frontend-1"]
    assert silence != well
    assert names(found["controller-1"], silence)
    assert names(found["broker"], silence)
    shown = lines(None, view(None, frontend=False, broker=False))
    assert not any(line.startswith("goodput") for line in shown), "nothing is known of requests"


def test_a_controller_that_is_silent_is_said_to_be_with_for_how_long() -> None:
    """And not that there is no worker, nor that nothing is served: frontends go on telling of their clients."""
    seen = view(None)
    assert names(healths(seen)["controller-1"], "silent for 4 s")
    assert names(facts(None, seen)["controller-1"], "silent for 4 s")
    assert names(facts(None, seen)["goodput"], "1.8/s")
    assert "waiting" not in facts(None, seen)
    assert healths(seen)["gpu_worker-1"] not in (healths(view())["gpu_worker-1"], healths(view())["gpu_worker-2"])
    for shown in (lines(None, seen), lines(None, seen, 80, 24)):
        assert first_line(shown, "controller-1", "silent for 4 s") >= 0
        assert first_line(shown, "goodput") > 0


def test_a_silent_controller_that_the_broker_has_given_up_is_still_named() -> None:
    seen = view(None)
    seen.members = [member for member in MEMBERS if member.role != "controller"]
    assert names(healths(seen)["controller-1"], "silent for 4 s")


def test_who_is_not_let_in_is_told_so_and_not_that_controllers_are_silent() -> None:
    """Frontends hear them; and of one that they do not hear, that it is silent is what counts."""
    seen = view(None, broker=False)
    seen.why = "it refuses our key"
    assert names(healths(seen)["controller-1"], "silent for 4 s")
    seen.silent = {"controller-1": 0.1}
    assert healths(seen)["controller-1"] == "unknown: it does not let us in"
    assert names(facts(None, seen)["controller-1"], "it does not let us in")
    assert healths(seen)["gpu_worker-1"] == "unknown: no controller lets us in"


def test_without_a_frontend_nobody_knows_how_requests_fare() -> None:
    said = facts(None, view(frontend=False))
    assert (said["goodput"][0], said["attainment"]) == ("-", "-")


@pytest.mark.parametrize("changes", [{"heard_ago_s": 1.2}, {"leaving": True}, {"leaving": True, "heard_ago_s": 1.2}])
def test_a_worker_s_health_is_what_its_controller_says(changes: dict[str, object]) -> None:
    (device,) = SNAPSHOT.devices
    found = healths(view(replace(SNAPSHOT, devices=(replace(device, **changes),))))
    assert found["gpu_worker-1"] not in (found["broker"], found["gpu_worker-2"])
    assert names(found["gpu_worker-1"], "1.2") == ("leaving" not in changes), "who leaves may be silent"


# -- widths and heights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_every_number_is_readable_at_the_usual_widths(width: int) -> None:
    shown = lines(None, large(), width)
    assert all(len(line) <= width for line in shown)
    for i in range(8):
        (row,) = [line.split() for line in shown if f"test/{i} " in line]
        numbers = [f"0000000{i}", f"{i * 10}%", "2%", "1+0", "0.8", "0.1", "1024/1024", "1/2", "1"]
        assert [cell for cell in row if "█" not in cell][1:10] == numbers
    (row,) = [line.split() for line in shown if "somebody.49:12" in line]
    good = ["1.6"] if width >= 110 else []
    assert row[1:] == ["1/1", "5", "1.9", *good, "83.3%", "8", "6", "2", "3"]
    assert not [line for line in shown if line.startswith(("…", "frontend-1")) and line.endswith("…")]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_top_fits_the_terminal_with_what_matters_most_first(width: int, height: int) -> None:
    shown = lines(None, large(), width, height)
    assert len(shown) <= height
    assert names(shown[0], 11), "members"
    requests, devices = first_line(shown, "goodput"), first_line(shown, "test/")
    assert (requests, requests < devices < first_line(shown, "somebody.49:12")) == (2, True)
    assert "test/7" in shown[devices] or height > 24, "the busiest first, where there is no room for all"


def test_top_names_only_members_that_are_not_well() -> None:
    ill = members_line(view()).plain
    assert names(ill, 5, "gpu_worker-2", healths(view())["gpu_worker-2"])
    assert not names(ill, "gpu_worker-1")
    well = members_line(large()).plain
    assert names(well, 11)
    assert not names(well, "gpu_worker")
    assert lines(None, view(), 80, 24)[0].startswith(ill)
