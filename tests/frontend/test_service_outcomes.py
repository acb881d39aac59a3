"""How requests ended, as a frontend counts them and tells controllers: beside a real broker, and others as told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from frontend.client.client import Failed, Invalid, Prediction, Rejected, TimedOut
from frontend.core.outcomes import OUTCOMES
from mesh import wire
from mesh.codes import RequestOutcome
from tests.frontend.client.fakes import ROW
from tests.frontend.service_mesh import Mesh, hear, mesh, request
from tests.loops import on_loop


async def told(at: Mesh) -> Any:
    """What the frontend has counted."""
    return (await at.status())["outcomes"]


def counted(tally: Any) -> dict[str, int]:
    """{outcome: requests}, of those that there were."""
    return {outcome: tally[outcome] for outcome in OUTCOMES if tally[outcome]}


@on_loop
async def test_every_way_to_end_is_counted_as_the_client_saw_it(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        good, bad = at.client.submit("m", ROW), at.client.submit("m", ROW)
        served, refused = await at.controller.wait(wire.Submit, 2)
        at.finish(served, cold=True)
        assert isinstance(await good, Prediction)
        at.controller.send(
            wire.Refused(request=refused.request, attempt=0, status="rejected", code="overload", message="no")
        )
        assert isinstance(await bad, Rejected)
        assert isinstance(await at.client.submit("m", ROW, slo_ms=200), TimedOut)
        assert isinstance(await at.client.submit("m", ROW, weight=-1.0), Invalid)
        assert isinstance(await at.client.submit("nothing", ROW), Invalid)
        outcomes = await told(at)
        mine = outcomes["models"]["m"]
        assert counted(mine) == {"ok": 1, "rejected": 1, "timed_out": 1, "invalid": 1}
        assert (mine["in_time"], mine["late"], mine["cold"], mine["offered"]) == (1, 0, 1, 4)
        assert counted(outcomes["unknown"]) == {"invalid": 1}
        assert counted(outcomes["total"]) == {"ok": 1, "rejected": 1, "timed_out": 1, "invalid": 2}
        assert outcomes["unlogged"] == {"invalid": 2}


@on_loop
async def test_a_request_in_parts_counts_once_and_its_lines_are_known_to_be_of_one(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", np.zeros((20, 4), np.float32))
        submits = await at.controller.wait(wire.Submit, 3)
        first = submits[0].request
        assert [submit.call for submit in submits] == [0, first, first]
        at.finish(*submits)
        answer: Any = await future
        assert answer.request == first
        assert counted((await told(at))["models"]["m"]) == {"ok": 1}


@pytest.mark.parametrize(("status", "kind"), [("rejected", Rejected), ("failed", Failed)])
@on_loop
async def test_a_refusal_names_the_line_of_the_log_too(status: str, kind: Any, tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.controller.send(wire.Refused(request=submit.request, attempt=0, status=status, code="x", message="no"))
        outcome: Any = await future
        assert isinstance(outcome, kind)
        assert outcome.request == submit.request


@on_loop
async def test_a_client_s_id_travels_with_the_request_cut_to_what_a_log_line_takes(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        for mine in (7, "yours", "x" * 200):
            sock.send(request(mine))
        submits = await at.controller.wait(wire.Submit, 3)
        assert [submit.asked_id for submit in submits] == ["7", "yours", "x" * wire.ASKED_ID_MAX]
        at.finish(*submits)
        answers = [await hear(sock) for _ in submits]
        assert [answer["request"] for answer in answers] == [submit.request for submit in submits]


@on_loop
async def test_a_proxy_names_the_id_that_its_own_client_gave(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        for call, mine in ((7, "yours"), (8, "x" * 200), (9, None), (10, "")):
            sock.send(request(call, asked_id=mine))
        submits = await at.controller.wait(wire.Submit, 4)
        assert [submit.asked_id for submit in submits] == ["yours", "x" * wire.ASKED_ID_MAX, "9", "10"]
        at.finish(*submits)
        assert {(await hear(sock))["id"] for _ in submits} == {7, 8, 9, 10}


@on_loop
async def test_an_answer_has_the_rows_that_were_asked_for_and_those_that_were_computed(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        at.finish(*await at.controller.wait(wire.Submit, 1), rows_of_batch=3)
        answer: Any = await future
        assert (answer.batch_size, answer.batch_padded) == (3, 4)


async def cancels(at: Mesh, number: int) -> list[tuple[int, str]]:
    """(request, outcome) of what the controller is told of requests that are over."""
    return [(cancel.request, cancel.outcome) for cancel in await at.controller.wait(wire.Cancel, number)]


@on_loop
async def test_a_controller_is_told_what_became_of_requests_that_end_without_it(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        assert isinstance(await at.client.submit("m", ROW, slo_ms=200), TimedOut)
        (first,) = await at.controller.wait(wire.Submit, 1)
        assert await cancels(at, 1) == [(first.request, RequestOutcome.TIMED_OUT)]
        large = at.client.submit("m", np.zeros((16, 4), np.float32))
        _, one, other = await at.controller.wait(wire.Submit, 3)
        at.controller.send(wire.Refused(request=one.request, attempt=0, status="failed", code="x", message="no"))
        assert isinstance(await large, Failed)
        assert (await cancels(at, 2))[1] == (other.request, RequestOutcome.WITHDRAWN)


@on_loop
async def test_a_controller_that_took_a_request_for_done_is_told_when_its_client_saw_otherwise(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        future = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        wrong = wire.Answer(request=submit.request, attempt=0, rows=1, predicted_s=0.1, inline=(memoryview(b"1"),))
        at.outputs(wrong)
        assert isinstance(await future, Failed)
        assert await cancels(at, 1) == [(submit.request, RequestOutcome.FAILED)]
        assert counted((await told(at))["models"]["m"]) == {"failed": 1}


@on_loop
async def test_a_controller_that_gives_up_what_was_answered_is_told_so_and_what_it_was_told_of_stays(
    tmp_path: Path,
) -> None:
    """The worker died after it had sent the outputs, and before it had told its controller."""
    async with mesh(tmp_path) as at:
        good = at.client.submit("m", ROW)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.finish(submit)
        assert isinstance(await good, Prediction)
        assert isinstance(await at.client.submit("m", ROW, slo_ms=200), TimedOut)
        late = at.controller.of(wire.Submit)[1]
        refusals = [
            wire.Refused(request=number, attempt=0, status="failed", code="worker_lost", message="no")
            for number in (submit.request, late.request, 10**9)
        ]
        at.controller.send(*refusals)
        assert await cancels(at, 2) == [
            (late.request, RequestOutcome.TIMED_OUT),
            (submit.request, RequestOutcome.IN_TIME),
        ]
        again = at.client.submit("m", ROW)
        at.finish((await at.controller.wait(wire.Submit, 3))[2])
        assert isinstance(await again, Prediction)
        assert len(await cancels(at, 2)) == 2, "nothing is said of what is unknown, or was told before"
        assert counted((await told(at))["models"]["m"]) == {"ok": 2, "timed_out": 1}


@on_loop
async def test_what_the_cache_answers_and_what_waits_for_it_is_counted_each_and_is_in_no_log(tmp_path: Path) -> None:
    async with mesh(tmp_path, cache_mb=4) as at:
        leads, follows = at.client.submit("m", ROW), at.client.submit("m", ROW)
        await at.status(lambda status: status["in_flight"] == 2)
        (submit,) = await at.controller.wait(wire.Submit, 1)
        at.finish(submit)
        joined: Any = [await leads, await follows]
        cached: Any = await at.client.submit("m", ROW)
        assert [answer.request for answer in (*joined, cached)] == [submit.request, submit.request, None]
        outcomes = await told(at)
        assert (outcomes["models"]["m"]["ok"], outcomes["models"]["m"]["cached"]) == (3, 1)
        assert outcomes["unlogged"] == {"ok": 2}


@on_loop
async def test_a_frontend_says_which_controllers_it_hears_and_since_when_it_does_not(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        heard = (await at.status(lambda status: status["controllers"]))["controllers"]
        assert heard.keys() == {"controller-1"}
        assert heard["controller-1"] < 60
        at.controller.leave()
        gone = await at.status(lambda status: not [m for m in status["members"] if m["role"] == "controller"])
        (ago,) = gone["controllers"].values()
        assert ago >= 0
        later = await at.status(lambda status: status["controllers"]["controller-1"] > ago)
        assert later["controllers"].keys() == {"controller-1"}, "as nobody has taken its place"
