"""frontend/core/early.py: requests held until the first table, or until their budget ends."""

from typing import Any

import pytest

from frontend.core import protocol
from frontend.core.early import HELD_S_MAX, RETRY_AFTER_MS, Early, EarlyRequests
from frontend.core.protocol import RequestRefused


def infer(number: int, **fields: Any) -> protocol.InferRequest:
    """A request for model m."""
    return protocol.InferRequest(**{"id": number, "inputs": [], "model": "m", "slo_ms": 100.0, **fields})


@pytest.fixture
def early() -> EarlyRequests:
    """Room for three requests and 100 bytes; budgets up to a second."""
    return EarlyRequests(3, 100, 1000.0)


def hold(early: EarlyRequests, request: Any, now: float = 5.0, client: str = "c") -> None:
    early.hold(Early(client, request, (), now))
    early.check()


def test_everything_is_released_once_oldest_first(early: EarlyRequests) -> None:
    hold(early, infer(2), 5.0)
    hold(early, infer(1, slo_ms=10.0), 5.1)
    hold(early, protocol.ModelsRequest(id=3), 5.2)
    assert len(early) == 3
    assert [(held.request.id, held.received_s) for held in early.release()] == [(2, 5.0), (1, 5.1), (3, 5.2)]
    early.check()
    assert (len(early), early.release(), early.wake_at()) == (0, [], None)


def test_what_has_a_budget_is_held_as_long_as_that_lasts_the_rest_for_a_while(early: EarlyRequests) -> None:
    hold(early, protocol.AppsRequest(id=1), 5.0)
    hold(early, infer(2, slo_ms=None), 5.5)
    hold(early, infer(3), 6.0)
    assert early.wake_at() == 6.1
    assert early.expire(6.09) == []
    ((expired, refusal),) = early.expire(6.1)
    early.check()
    assert expired.client == "c"
    assert (refusal.id, refusal.status, refusal.code, refusal.retry_after_ms) == (
        3, "rejected", "not_ready", RETRY_AFTER_MS,
    )  # fmt: skip
    assert early.wake_at() == 6.5  # at most the largest budget
    assert [refusal.id for _, refusal in early.expire(5.0 + HELD_S_MAX)] == [2, 1]
    early.check()
    assert len(early) == 0


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (infer(1), "duplicate_id", "id"),
        (protocol.ModelsRequest(id=1), "duplicate_id", "id"),
        (infer(2, slo_ms=0.0), "bad_slo", "slo_ms"),
        (infer(2, slo_ms=1000.1), "bad_slo", "slo_ms"),
        (infer(2, app="a"), "bad_target", "model"),
        (infer(2, model="no such name"), "unknown_model", "model"),
    ],
)
def test_what_no_table_can_make_right_is_refused_at_once(
    early: EarlyRequests, request_: Any, code: str, field: str
) -> None:
    hold(early, infer(1))
    with pytest.raises(RequestRefused) as refused:
        hold(early, request_)
    assert (refused.value.code, refused.value.field, refused.value.id) == (code, field, request_.id)
    assert refused.value.status == "invalid"
    early.check()
    assert len(early) == 1


def test_no_more_than_the_limit_are_held(early: EarlyRequests) -> None:
    for number in range(3):
        hold(early, infer(number))
    with pytest.raises(RequestRefused) as refused:
        hold(early, infer(3))
    assert (refused.value.status, refused.value.code) == ("rejected", "frontend_full")
    assert refused.value.retry_after_ms is not None
    early.check()
    assert len(early) == 3


def test_no_more_bytes_than_the_limit_are_held(early: EarlyRequests) -> None:
    inside = protocol.RequestTensor("x", "uint8", [20], memoryview(bytes(20)))
    early.hold(Early("c", infer(1, inputs=[inside], slo_ms=10.0), (), 5.0, 60))  # the whole message is kept
    early.hold(Early("c", infer(2), (bytes(40),), 5.0))
    early.check()
    with pytest.raises(RequestRefused) as refused:
        hold(early, infer(3))
    assert (refused.value.status, refused.value.code) == ("rejected", "memory_full")
    assert refused.value.retry_after_ms is not None
    early.expire(5.02)
    hold(early, infer(3), 5.02)
    early.release()
    early.check()
    assert early.bytes_held == 0


def test_two_connections_may_use_the_same_id(early: EarlyRequests) -> None:
    hold(early, infer(1), client="c")
    hold(early, infer(1), client="d")
    assert len(early) == 2


# -- clients that wait no longer --------------------------------------------------------------------------------------


def test_a_request_that_its_client_ends_is_held_no_more_and_its_id_is_free(early: EarlyRequests) -> None:
    hold(early, infer(1), client="c")
    hold(early, infer(1), client="d")
    cancelled = early.cancel("c", 1)
    early.check()
    assert cancelled is not None
    assert (cancelled.client, early.cancel("c", 1), early.cancel("c", 2)) == ("c", None, None)
    hold(early, infer(1, slo_ms=900.0), client="c")
    assert [ended.client for ended, _ in early.expire(5.1)] == ["d"]
    early.check()
    assert [(held.client, held.request.id) for held in early.release()] == [("c", 1)]


def test_nothing_is_held_for_a_connection_that_is_gone(early: EarlyRequests) -> None:
    for number, client in ((1, "c"), (2, "d"), (3, "c")):
        hold(early, infer(number), client=client)
    assert [held.request.id for held in early.client_gone("c")] == [1, 3]
    early.check()
    assert early.client_gone("c") == []
    assert [held.request.id for held in early.release()] == [2]


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    early = EarlyRequests(10, 1 << 20, 1000.0)
    hold(early, infer(0))
    for number in range(1, 300):
        early.hold(Early("c", infer(number), (bytes(100),), 5.0))
        early.cancel("c", number)
        early.check()
    assert (len(early), early.bytes_held) == (1, 0)
