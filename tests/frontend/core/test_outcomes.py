"""frontend/core/outcomes.py: every request is counted once, as its client saw it, under what it asked."""

from collections import Counter
from typing import Any

import pytest

from frontend.core import protocol
from frontend.core.open_calls import Call, CallPart
from frontend.core.outcomes import BUSIEST_MAX, OUTCOMES, Outcomes, outcome_of
from frontend.core.protocol import ClientAnswer, Error
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.tallies import LABELS_MAX

SPEC = wire.ModelSpec(inputs=(), outputs=(), batch_max=1, slo_ms=1.0)


def table(*models: str, apps: tuple[str, ...] = ()) -> wire.Table:
    """A table in which these are deployed."""
    return wire.Table(
        epoch=1,
        members=(),
        models=tuple(
            wire.ModelEntry(name=name, current="1", target=None, versions=("1",), owner=None) for name in models
        ),
        shards={},
        workers={},
        apps=tuple(wire.AppEntry(name=name, definition={}, revision=1, created=1) for name in apps),
    )


def counting(*models: str, apps: tuple[str, ...] = ()) -> Outcomes:
    """A frontend's counts, with these deployed."""
    made = Outcomes()
    made.table_changed(table(*models, apps=apps))
    return made


def call(ref: str = "m:1", *, ask: int | None = None, logged: bool = True) -> Call:
    """A call that came at 10 s and is due at 11 s."""
    made = Call("c", 1, ref, SPEC, 1, 10.0, 11.0, False, ask=ask)
    if logged:
        made.parts.append(CallPart(made, 1, 1, (), attempt=0))
    return made


def infer(**target: Any) -> protocol.InferRequest:
    """A question to this target."""
    return protocol.InferRequest(id=1, inputs=[], **target)


def counted(tally: Any) -> dict[str, int]:
    """{outcome: requests} of a tally, without those that nobody had."""
    return {outcome: tally[outcome] for outcome in OUTCOMES if tally[outcome]}


@pytest.mark.parametrize(("now", "in_time", "late"), [(10.5, 1, 0), (11.0, 1, 0), (11.001, 0, 1)])
def test_an_answer_is_in_time_if_it_leaves_by_the_deadline(now: float, in_time: int, late: int) -> None:
    made = counting("m")
    assert made.served(call(), now, cached=False, cold=True) == bool(in_time)
    told = made.told()["models"]["m"]
    assert (told["ok"], told["in_time"], told["late"], told["cold"], told["cached"]) == (1, in_time, late, 1, 0)
    assert (sum(told["latency_s"]["counts"]), told["latency_s"]["sum"]) == (1, pytest.approx(now - 10.0))


@pytest.mark.parametrize("status", [status for status in AnswerStatus if status != "ok"])
def test_every_status_is_an_outcome(status: str) -> None:
    made = counting("m")
    made.ended(call(), status, "whatever")
    assert counted(made.told()["models"]["m"]) == {status: 1}
    assert made.told()["models"]["m"]["offered"] == 1


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        ("failed", ErrorCode.CANCELLED, "cancelled"),
        ("failed", "device_error", "failed"),
        ("of a newer mesh", "x", "failed"),
    ],
)
def test_what_its_client_cancelled_is_told_apart_and_what_is_unknown_has_failed(
    status: str, code: str, outcome: str
) -> None:
    assert outcome_of(status, code) == outcome


def test_a_client_s_own_cancel_is_not_offered() -> None:
    made = counting("m", apps=("a",))
    made.ended(call(), "failed", ErrorCode.CANCELLED)
    made.abandoned(call())
    gone = protocol.ClientAnswer(id=1, status="failed", app="a", error=protocol.Error(ErrorCode.CANCELLED, "gone"))
    made.application(gone, 0.0, 1.0, 0.5)
    made.refused(infer(model="m"), "failed", ErrorCode.CANCELLED)
    told = made.told()
    assert (told["models"]["m"]["offered"], told["models"]["m"]["cancelled"]) == (0, 3)
    assert (told["applications"]["a"]["offered"], told["total"]["cancelled"]) == (0, 4)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (infer(model="m"), "models"),
        (infer(app="a"), "applications"),
        (infer(model="nowhere"), "unknown"),
        (infer(app="nowhere"), "unknown"),
        (infer(), "unknown"),
        (infer(model="m", app="a"), "applications"),
        (None, "unknown"),
    ],
)
def test_what_is_refused_counts_under_what_it_named_if_that_is_deployed(
    request_: protocol.InferRequest | None, where: str
) -> None:
    made = counting("m", apps=("a",))
    made.refused(request_, AnswerStatus.INVALID)
    told = made.told()
    found = {
        "unknown": told["unknown"]["invalid"],
        "models": sum(tally["invalid"] for tally in told["models"].values()),
        "applications": sum(tally["invalid"] for tally in told["applications"].values()),
    }
    assert found == {**dict.fromkeys(found, 0), where: 1}
    assert counted(told["total"]) == {"invalid": 1}


def test_thousands_of_names_that_do_not_exist_leave_no_trace() -> None:
    made = counting("m")
    for i in range(3000):
        made.refused(infer(model=f"junk{i}"), AnswerStatus.INVALID)
    told = made.told()
    assert told["unknown"]["invalid"] == 3000
    assert (told["models"], told["busiest"], told["applications"]) == ({}, {}, {})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ClientAnswer(id=1, status="ok", app="a"), "ok"),
        (ClientAnswer(id=1, status="ok", app="a", default_used=True, error=Error("deadline", "")), "ok"),
        (ClientAnswer(id=1, status="timed_out", app="a", error=Error("deadline", "")), "timed_out"),
        (ClientAnswer(id=1, status="failed", app="a", error=Error("cancelled", "")), "cancelled"),
    ],
)
def test_an_application_s_answer_is_its_outcome_the_default_too(answer: ClientAnswer, outcome: str) -> None:
    made = counting("m", apps=("a",))
    made.application(answer, 10.0, 11.0, 10.9)
    assert counted(made.told()["applications"]["a"]) == {outcome: 1}
    assert made.told()["applications"]["a"]["in_time"] == (outcome == "ok")


def test_what_an_application_asks_of_models_is_counted_apart_and_in_no_sum_of_clients() -> None:
    made = counting("m", apps=("a",))
    made.served(call(ask=1), 10.5, cached=False, cold=False)
    made.ended(call(ask=2), "timed_out", "deadline")
    made.application(ClientAnswer(id=1, status="ok", app="a"), 10.0, 11.0, 10.9)
    told = made.told()
    assert counted(told["asks"]["m"]) == {"ok": 1, "timed_out": 1}
    assert told["models"] == {}
    assert counted(told["total"]) == {"ok": 1}


def test_what_no_controller_was_told_of_is_counted_as_such_once_more() -> None:
    made = counting("m")
    made.served(call(logged=False), 10.5, cached=True, cold=False)
    made.served(call(), 10.5, cached=False, cold=False)
    made.ended(call(logged=False), "timed_out", "deadline")
    waits = call(logged=False)
    waits.parts.append(CallPart(waits, 2, 1, ()))  # for a controller, in vain
    made.ended(waits, "timed_out", "deadline")
    told = made.told()
    assert told["unlogged"] == {"ok": 1, "timed_out": 2}
    assert counted(told["models"]["m"]) == {"ok": 2, "timed_out": 2}


def test_a_version_that_goes_takes_none_of_its_model_s_counts_along() -> None:
    made = counting("m")
    made.served(call("m:1"), 10.5, cached=False, cold=False)
    made.served(call("m:2"), 10.5, cached=False, cold=False)
    made.table_changed(table())
    made.ended(call("m:2"), "failed", "stopping")
    assert counted(made.told()["models"]["m"]) == {"ok": 2, "failed": 1}


def test_of_more_models_than_there_are_labels_the_busiest_are_told_beside_the_sum_of_all() -> None:
    names = [f"m{i}" for i in range(LABELS_MAX + BUSIEST_MAX + 10)]
    made = counting(*names)
    for i, name in enumerate(names):
        for _ in range(2 if i % 2 else 1):
            made.served(call(f"{name}:1"), 10.5, cached=False, cold=False)
    told = made.told()
    assert list(told["models"]) == names[:LABELS_MAX]
    assert len(told["busiest"]) == BUSIEST_MAX
    assert min(tally["ok"] for tally in told["busiest"].values()) >= 1
    assert Counter(tally["ok"] for tally in told["busiest"].values())[2] == (BUSIEST_MAX + 10) // 2
    assert told["other_models"]["ok"] == (BUSIEST_MAX + 10) * 3 // 2
    made.table_changed(table(*names[: LABELS_MAX + 1]))
    after = made.told()
    assert len(after["busiest"]) == 1
    assert (after["other_models"], after["total"]) == (told["other_models"], told["total"])
