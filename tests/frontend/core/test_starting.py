"""frontend/core/starting.py: what a client is told of a model whose container is being started."""

import pytest

from frontend.core.protocol import RequestRefused
from frontend.core.starting import StartingContainers
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode

SPEC = wire.ModelSpec(inputs=(), outputs=(), batch_max=1, slo_ms=1.0)
STATE = wire.ChildState(model="f", serves=False, for_s=2.0, starts=3, line="epoch 7", why="killed by SIGKILL")


def member(name: str, child: wire.ChildState | None, *, offered: bool = False) -> wire.Member:
    offer = wire.Offer(ref="f:1", spec=SPEC, code="A") if offered else None
    return wire.Member(id=name, role="gpu_worker" if offered else "container", host="here", child=child, offer=offer)


def starting(*members: wire.Member) -> StartingContainers:
    found = StartingContainers()
    found.table_changed(members, now=100.0)
    return found


def serving(state: wire.ChildState) -> wire.ChildState:
    return wire.ChildState(model=state.model, serves=True, for_s=1.0, starts=state.starts)


@pytest.mark.parametrize(
    ("found", "some"),
    [
        (member("container-1", STATE), True),
        (member("container-1", serving(STATE)), True),  # imported, and the broker has not given it its number yet
        (member("worker-1", STATE, offered=True), True),  # it served, and is being started again
        (member("worker-1", serving(STATE), offered=True), False),
        (member("worker-1", None, offered=True), False),
        (member("frontend-1", None), False),
    ],
)
def test_a_container_starts_until_its_worker_is_there_and_its_code_serves(found: wire.Member, some: bool) -> None:
    one = starting(found)
    assert one.some is some
    assert bool(one.text("f", now=100.0)) is some
    assert one.text("g", now=100.0) == one.text(None, now=100.0) == ""


def test_the_text_says_how_long_by_now_which_start_why_and_the_last_line() -> None:
    one = starting(
        member("container-1", STATE), member("container-2", wire.ChildState(model="f", serves=False, for_s=0))
    )
    text = "container f has been starting for 12 s (start 3; before: killed by SIGKILL): epoch 7"
    assert one.text("f", now=110.0) == text
    assert one.states(now=110.0)["f"].for_s == 12.0
    one.table_changed([], now=111.0)
    assert one.text("f", now=111.0) == ""


@pytest.mark.parametrize("code", [ErrorCode.UNKNOWN_MODEL, ErrorCode.NOT_READY])
def test_a_request_without_a_target_is_not_ready_and_may_come_again(code: ErrorCode) -> None:
    one = starting(member("container-1", STATE))
    told = one.explained(RequestRefused(code, "there is none", "model", 7), "f", now=100.0)
    assert (told.code, told.status, told.id) == (ErrorCode.NOT_READY, AnswerStatus.REJECTED, 7)
    assert told.retry_after_ms
    other = RequestRefused(code, "there is none", "model", 7)
    assert one.explained(other, "g", now=100.0) is other


def test_a_request_that_is_wrong_is_told_so_though_its_container_starts() -> None:
    one = starting(member("container-1", STATE))
    wrong = RequestRefused(ErrorCode.UNKNOWN_VERSION, "no such version", "version", 7)
    assert one.explained(wrong, "f", now=100.0) is wrong


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (ErrorCode.NO_REPLICA, True),
        (ErrorCode.NO_WORKER, True),
        (ErrorCode.NOT_READY, True),
        (ErrorCode.OVERLOAD, False),
    ],
)
def test_a_controllers_refusal_is_explained_where_nobody_serves(code: ErrorCode, more: bool) -> None:
    one = starting(member("worker-1", STATE, offered=True))
    told = one.added("nobody", code, "f:1", now=100.0)
    assert ("epoch 7" in told, told.startswith("nobody")) == (more, True)
    assert one.added("nobody", code, "g:1", now=100.0) == "nobody"
