"""mesh/process/logs.py: the fields of every line, and what becomes of lines that repeat."""

import gc
import io
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog

from mesh import repeats
from mesh.process import logs
from mesh.process.settings import Settings
from mesh.repeats import LineBudget
from tests.loops import LIMIT_S


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Restores the configuration of logs for other tests."""
    yield
    structlog.reset_defaults()


def test_a_line_carries_the_service_whichever_thread_caused_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings(log_format="json"), "gpu_worker")
    log = structlog.get_logger()
    log.info("here")
    thread = threading.Thread(target=log.info, args=("there",))
    thread.start()
    thread.join()
    assert [(line["event"], line["service"], line["level"]) for line in lines(capsys)] == [
        ("here", "gpu_worker", "info"),
        ("there", "gpu_worker", "info"),
    ]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged."""
    return [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]


def test_lines_that_repeat_are_counted_in_one_and_the_count_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings(log_format="json"), "broker")
    log = structlog.get_logger()
    of_one = LineBudget().of_one
    for i in range(of_one + 100):
        log.warning("message_refused", peer="stranger", error=f"number {i}")
    log.warning("message_refused", peer="another")
    log.error("device_lost")
    written = lines(capsys)
    assert [line["peer"] for line in written[:-1]] == ["stranger"] * of_one + ["another"]
    assert written[-1]["event"] == "device_lost"
    assert logs.counts() == (100, 0)
    logs.finish()
    (told,) = lines(capsys)
    assert (told["peer"], told["error"], told["folded"]) == ("stranger", f"number {of_one + 99}", 100)


def test_an_event_of_another_level_has_a_budget_of_its_own_and_debugging_has_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(Settings(log_format="json", log_level="debug"), "controller")
    log = structlog.get_logger()
    for _ in range(1000):
        log.debug("action_failed", worker="w")
    log.warning("action_failed", worker="w")
    written = lines(capsys)
    assert (len(written), written[-1]["level"]) == (1001, "warning")


def test_what_is_folded_is_told_in_time_though_nothing_more_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()  # that pytest captures loses what another thread writes while it is read
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(repeats, "PERIOD_S", 0.05)
    logs.set_up(Settings(log_format="json"), "broker")
    log = structlog.get_logger()
    of_one = LineBudget().of_one
    for i in range(of_one + 100):
        log.warning("message_refused", peer="stranger", error=f"number {i}")

    def written() -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in file.getvalue().splitlines(keepends=True) if line.endswith("\n")]

    until_s = time.monotonic() + LIMIT_S
    while sum(line.get("folded", 1) for line in written()) < of_one + 100:
        assert time.monotonic() < until_s
    told = [line for line in written() if "folded" in line]
    assert told
    assert all(line["peer"] == "stranger" and line["level"] == "warning" for line in told)
    assert told[-1]["error"] == f"number {of_one + 99}"


def test_a_flood_of_exceptions_keeps_no_frame_alive(capsys: pytest.CaptureFixture[str]) -> None:
    class Large:
        """What a frame holds."""

    logs.set_up(Settings(log_format="json"), "gateway")
    log = structlog.get_logger()

    def fail() -> "weakref.ref[Large]":
        held = Large()
        try:
            raise ZeroDivisionError(id(held))
        except ZeroDivisionError as error:
            log.error("gateway_error", exc_info=error)
        return weakref.ref(held)

    kept = [fail() for _ in range(100)]
    gc.collect()
    logs.finish()
    assert not any(each() for each in kept)
    written = lines(capsys)
    assert len(written) == LineBudget().of_one + 1
    assert all("ZeroDivisionError" in line["exception"] for line in written[:-1])


@pytest.mark.parametrize("value", ["\ud800", b"\xff", {1: {"\ud800"}}, object(), ValueError("x"), float("nan")])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_value_keeps_a_line_from_being_written(
    value: object, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(Settings.model_validate({"log_format": log_format}), "gateway")
    structlog.get_logger().warning("odd", value=value)
    assert "odd" in capsys.readouterr().out


def test_a_field_that_is_too_long_is_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings(log_format="json"), "frontend")
    structlog.get_logger().warning("long", why="a" + "x" * 1_000_000 + "b")
    (line,) = lines(capsys)
    assert len(line["why"]) < 2 * logs.TEXT_MAX
    assert (line["why"][0], line["why"][-1]) == ("a", "b")
