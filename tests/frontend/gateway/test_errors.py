"""frontend/gateway/errors.py and admission.py: the HTTP status of each error, and what is admitted."""

from typing import Any

import pytest

from frontend.client.conversation import ERRORS
from frontend.gateway.admission import SMALL_BYTES, Gate, budget_of, check_encoding, check_origin, json_length
from frontend.gateway.errors import HttpRefusal, error_answer, plain_error, refusal
from mesh.codes import HttpCode


def answer(status: str, code: str, **error: Any) -> Any:
    """The mesh's answer as the error that the client raises."""
    return ERRORS[status]({"status": status, "error": {"code": code, "message": "why", **error}, "latency_ms": 1.5})


@pytest.mark.parametrize(
    ("status", "code", "http"),
    [
        ("rejected", "deadline", 429),
        ("rejected", "overload", 429),
        ("rejected", "queue_full", 429),
        ("rejected", "frontend_full", 429),
        ("rejected", "not_ready", 503),
        ("rejected", "no_worker", 503),
        ("rejected", "no_replica", 503),
        ("rejected", "not_deployed", 404),
        ("timed_out", "deadline", 504),
        ("timed_out", "no_answer", 504),
        ("failed", "device_error", 500),
        ("failed", "worker_lost", 500),
        ("failed", "low_confidence", 500),
        ("failed", "stopping", 503),
        ("invalid", "unknown_model", 404),
        ("invalid", "unknown_version", 404),
        ("invalid", "unknown_app", 404),
        ("invalid", "bad_shape", 400),
        ("invalid", "bad_slo", 400),
    ],
)
def test_every_outcome_has_its_status_and_a_body_that_says_why(status: str, code: str, http: int) -> None:
    told = error_answer(answer(status, code))
    assert told.status == http
    assert told.body == {"error": "why", "code": code, "status": status, "latency_ms": 1.5}


@pytest.mark.parametrize(
    ("status", "code", "retry_after_ms", "said"),
    [
        ("rejected", "deadline", None, False),  # the budget would not do on an idle mesh, either
        ("rejected", "deadline", 30.0, True),
        ("rejected", "overload", None, True),
        ("rejected", "queue_full", None, True),
        ("rejected", "frontend_full", None, True),
        ("rejected", "not_ready", None, False),  # no device can prepare it
        ("rejected", "not_ready", 1000.0, True),
        ("rejected", "no_worker", 1000.0, True),
        ("rejected", "no_replica", None, False),
        ("rejected", "not_deployed", None, False),
        ("failed", "stopping", None, True),
        ("failed", "closed", None, False),
        ("rejected", "of_a_newer_mesh", None, False),
        ("rejected", "of_a_newer_mesh", 30.0, True),
        ("timed_out", "no_answer", None, False),  # 504
        ("failed", "worker_lost", None, False),  # 500
    ],
)
def test_retry_after_is_told_only_where_asking_again_may_help(
    status: str, code: str, retry_after_ms: float | None, said: bool
) -> None:
    more = {} if retry_after_ms is None else {"retry_after_ms": retry_after_ms}
    assert ("Retry-After" in error_answer(answer(status, code, **more)).headers) == said


@pytest.mark.parametrize(
    ("retry_after_ms", "seconds"), [(None, "1"), (0.5, "1"), (1000.0, "1"), (1000.1, "2"), (61_000.0, "61")]
)
def test_retry_after_is_in_whole_seconds_and_never_too_early(retry_after_ms: float | None, seconds: str) -> None:
    told = error_answer(answer("rejected", "overload", retry_after_ms=retry_after_ms))
    assert told.headers["Retry-After"] == seconds
    assert told.body.get("retry_after_ms") == retry_after_ms


def test_a_field_is_named_as_http_has_it() -> None:
    assert error_answer(answer("invalid", "bad_dtype", field="inputs[0].dtype")).body["field"] == "inputs[0].datatype"


def test_the_gateways_own_refusals_look_the_same() -> None:
    told = refusal(HttpRefusal("too many", HttpCode.GATEWAY_FULL, retry_after_ms=50.0))
    assert (told.status, told.headers) == (429, {"Retry-After": "1"})
    assert told.body == {"error": "too many", "code": "gateway_full", "status": "rejected", "retry_after_ms": 50.0}
    assert plain_error(404, "no path").body == {"error": "no path", "code": "no_such_path"}


def test_so_many_requests_at_once_and_no_more() -> None:
    gate = Gate(2, 100, 100)
    gate.enter()
    gate.enter()
    with pytest.raises(HttpRefusal, match=r"\b2\b") as caught:
        gate.enter()
    assert caught.value.status == 429
    gate.leave(0)
    gate.enter()
    assert gate.requests == 2


def test_a_body_is_refused_as_soon_as_it_is_known_to_be_too_large() -> None:
    gate = Gate(9, 100, 1000)
    gate.announced(100)
    gate.announced(None)
    with pytest.raises(HttpRefusal, match=r"100.*GEARMESH_REQUEST_BYTES_MAX.*101") as caught:
        gate.announced(101)
    assert caught.value.status == 413
    assert gate.hold(0, 100) == 100
    with pytest.raises(HttpRefusal, match="101"):
        gate.hold(100, 1)
    assert gate.held_bytes == 100


def test_all_bodies_together_are_bounded_and_freed_when_they_are_answered() -> None:
    gate = Gate(9, 100, 150)
    gate.enter()
    gate.enter()
    gate.hold(0, 100)
    gate.hold(0, 50)
    with pytest.raises(HttpRefusal, match="150") as caught:
        gate.hold(50, 1)
    assert caught.value.status == 429
    gate.leave(100)
    assert gate.hold(50, 50) == 100
    gate.leave(100)
    assert (gate.requests, gate.held_bytes) == (0, 0)


def test_large_bodies_leave_room_for_small_ones() -> None:
    gate = Gate(99, 1 << 30, 80 * SMALL_BYTES)
    for _ in range(7):
        gate.hold(0, 10 * SMALL_BYTES)
    with pytest.raises(HttpRefusal) as caught:
        gate.hold(SMALL_BYTES, 1)
    assert caught.value.status == 429
    for _ in range(10):
        gate.hold(0, SMALL_BYTES)
    with pytest.raises(HttpRefusal):
        gate.hold(0, 1)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1.evil.example:8000", "null", "http://[", ""]
)
def test_pages_from_elsewhere_may_not_ask(origin: str) -> None:
    with pytest.raises(HttpRefusal) as caught:
        check_origin({"Origin": origin})
    assert (caught.value.status, caught.value.code) == (403, "foreign_origin")


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://localhost:8000"}, {"Origin": "http://[::1]:3000"}])
def test_programs_and_pages_of_this_machine_may(headers: dict[str, str]) -> None:
    check_origin(headers)


def test_headers_that_are_no_numbers_are_refused_by_name() -> None:
    assert (budget_of(None), budget_of("12.5"), json_length(None), json_length("0")) == (None, 12.5, None, 0)
    with pytest.raises(HttpRefusal, match=r"X-Gearmesh-Slo-Ms.*'soon'"):
        budget_of("soon")
    for wrong in ("-1", "1.5", "", "²", "9" * 20):
        with pytest.raises(HttpRefusal, match="Inference-Header-Content-Length"):
            json_length(wrong)


@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip", "GZIP", " deflate "])
def test_encodings_that_are_read(encoding: str | None) -> None:
    check_encoding(encoding)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "x" * 9999])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(HttpRefusal, match="Content-Encoding") as caught:
        check_encoding(encoding)
    assert (caught.value.status, caught.value.code, caught.value.field) == (415, "bad_encoding", "Content-Encoding")
    assert len(str(caught.value)) < 200
