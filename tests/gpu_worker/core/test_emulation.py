"""Durations of devices that are not there."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.emulation import Emulator, ModelTimes, ProfileError, exec_s, interpolate, parse_profile
from gpu_worker.core.jobs import Done, Job, Phase
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import infer, load

H100 = {
    "name": "h100",
    "memory_mb": 1024,
    "page_mb": 16,
    "load_gb_per_s": 50.0,
    "load_fixed_ms": 0.02,
    "models": {"resnet50": {"weights_mb": 51, "exec_ms": {"1": 0.9, "2": 1.0, "4": 1.4}}},
    "default": {"exec_ms": {"intercept": 0.8, "slope": 0.1}},
}


def changed(**fields: Any) -> str:
    """The profile with other fields; None: without this one."""
    merged = {key: value for key, value in (H100 | fields).items() if value is not None}
    return json.dumps(merged)


def fault(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "h100.json")
    return str(caught.value)


# -- a good one -------------------------------------------------------------------------------------------------------


def test_a_profile_is_read() -> None:
    profile = parse_profile(json.dumps(H100), "h100.json")
    assert (profile.name, profile.pages, profile.page_bytes) == ("h100", 64, 16 << 20)
    assert profile.load_s(50_000_000_000) == pytest.approx(1.00002)
    assert profile.load_s(0) == pytest.approx(0.00002)


def test_all_but_a_name_and_some_model_has_defaults() -> None:
    profile = parse_profile('{"name": "x", "default": {"exec_ms": {"1": 1.0}}}', "x.json")
    assert (profile.pages, profile.page_bytes) == (4096, 16 << 20)


def test_a_model_that_is_not_named_has_the_default_times() -> None:
    profile = parse_profile(json.dumps(H100), "h100.json")
    named, default = profile.times("resnet50"), profile.times("other")
    assert named is not None
    assert default is not None
    assert exec_s(named, 1) == pytest.approx(0.0009)
    assert exec_s(default, 10) == pytest.approx(0.0018)
    assert parse_profile(changed(default=None), "h100.json").times("other") is None


def test_times_are_on_the_line_between_the_sizes_that_were_given_and_beyond_them() -> None:
    times = ModelTimes(exec_ms={"4": 1.4, "1": 0.9, "2": 1.0})
    assert [exec_s(times, batch) * 1e3 for batch in (1, 2, 3, 4, 6)] == pytest.approx([0.9, 1.0, 1.2, 1.4, 1.8])


def test_below_the_smallest_size_its_time_is_taken() -> None:
    assert [interpolate([(4, 2.0), (8, 3.0)], batch) for batch in (1, 3, 4, 5)] == pytest.approx([2.0, 2.0, 2.0, 2.25])


def test_beyond_the_only_size_times_grow_in_proportion() -> None:
    assert [interpolate([(4, 2.0)], batch) for batch in (1, 4, 6, 8)] == pytest.approx([2.0, 2.0, 3.0, 4.0])


@given(
    points=st.dictionaries(st.integers(1, 64), st.floats(0.001, 100.0), min_size=1, max_size=6),
    batch=st.integers(1, 128),
)
def test_a_time_is_never_nothing_or_less(points: dict[int, float], batch: int) -> None:
    times = ModelTimes(exec_ms={str(size): ms for size, ms in points.items()})
    assert exec_s(times, batch) > 0


@given(
    points=st.dictionaries(st.integers(1, 64), st.floats(0.001, 100.0), min_size=1, max_size=6),
)
def test_times_that_were_given_are_kept(points: dict[int, float]) -> None:
    times = ModelTimes(exec_ms={str(size): ms for size, ms in points.items()})
    for size, ms in points.items():
        assert exec_s(times, size) * 1e3 == pytest.approx(ms)


# -- wrong ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"name": None}, "name"),
        ({"name": 7}, "$.name"),
        ({"memory_mb": 0}, "$.memory_mb"),
        ({"memory_mb": -1}, "$.memory_mb"),
        ({"page_mb": 0}, "$.page_mb"),
        ({"page_mb": "16"}, "$.page_mb"),
        ({"load_gb_per_s": 0}, "$.load_gb_per_s"),
        ({"load_fixed_ms": -0.1}, "$.load_fixed_ms"),
        ({"loads": 1}, "loads"),
        ({"models": {"a": {}}}, "exec_ms"),
        ({"models": {"a": {"exec_ms": {"1": 1.0}, "exec": 1}}}, "$.models"),
        ({"models": {"a": {"exec_ms": {"1": -1.0}}}}, "exec_ms"),
        ({"models": {"a": {"exec_ms": {"1": 0.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"0": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"-1": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"one": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"1.5": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"²": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"1": 1.0, "01": 2.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"intercept": 1.0}}}}, "models.a.exec_ms"),
        ({"models": {"a": {"exec_ms": {"intercept": 1.0, "slope": 1.0, "1": 1.0}}}}, "models.a.exec_ms"),
        ({"default": {"exec_ms": {"intercept": 0, "slope": 0}}}, "default.exec_ms"),
        ({"default": {"exec_ms": {"1": 1.0}, "weights_mb": 0}}, "weights_mb"),
        ({"default": {"exec_ms": {"1": 1.0}, "batch_max": 0}}, "batch_max"),
        ({"default": {"exec_ms": {"1": 1.0}, "batch_max": 1025}}, "batch_max"),
        ({"models": {}, "default": None}, "models"),
        ({"memory_mb": 15.9}, "memory_mb"),
        ({"memory_mb": 1, "page_mb": 1e-7}, "page_mb"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told_with_its_key(fields: dict[str, Any], key: str) -> None:
    told = fault(changed(**fields))
    assert told.startswith("h100.json: ")
    assert key in told


@pytest.mark.parametrize("text", ["", "{", "[]", '"h100"', "null"])
def test_what_is_no_profile_at_all_is_refused(text: str) -> None:
    assert fault(text).startswith("h100.json: ")


@pytest.mark.parametrize("memory_mb", [16, 16.1])
def test_a_device_has_one_page_at_least(memory_mb: float) -> None:
    assert parse_profile(changed(memory_mb=memory_mb), "h100.json").pages == 1


# -- a device that takes the time it is told to -----------------------------------------------------------------------


def job(action: int, *, latest_s: float = 1e9, loads: bool = False) -> Job:
    made = load(action, latest_s=latest_s) if loads else infer(action, latest_s=latest_s)
    return Job(made, 0.0, action)


def figures(done: Done | None) -> tuple[float, float, float, ActionCode] | None:
    return None if done is None else (done.begin_s, done.end_s, done.duration_s, done.code)


def ended(device: Emulator, now: float) -> list[tuple[Phase, Job, float, float]]:
    return [(phase, job, done.begin_s, done.end_s) for phase, job, done in device.due(now)]


def emulator(seconds: float = 1.0) -> Emulator:
    return Emulator(lambda phase, job: seconds)


def test_input_and_output_take_no_time() -> None:
    device = emulator()
    assert figures(device.begin(Phase.INPUT, job(1), 10.0)) == (10.0, 10.0, 0.0, ActionCode.OK)
    assert figures(device.begin(Phase.OUTPUT, job(1), 11.0)) == (11.0, 11.0, 0.0, ActionCode.OK)
    assert device.wake_at() is None


def test_exec_takes_its_time_and_is_told_when_that_is_over() -> None:
    device = emulator()
    first = job(1)
    assert device.begin(Phase.EXEC, first, 10.0) is None
    assert device.wake_at() == 11.0
    assert device.due(10.999) == []
    assert ended(device, 11.0) == [(Phase.EXEC, first, 10.0, 11.0)]
    assert device.due(11.0) == []
    assert device.wake_at() is None


def test_what_is_given_ahead_begins_when_what_is_before_it_has_ended() -> None:
    device = emulator()
    first, second = job(1), job(2)
    device.begin(Phase.EXEC, first, 10.0)
    device.begin(Phase.EXEC, second, 10.5)
    assert ended(device, 100.0) == [(Phase.EXEC, first, 10.0, 11.0), (Phase.EXEC, second, 11.0, 12.0)]
    assert device.begin(Phase.EXEC, job(3), 100.0) is None
    assert device.wake_at() == 101.0


def test_loads_and_executions_do_not_wait_for_each_other() -> None:
    device = Emulator(lambda phase, job: 5.0 if phase is Phase.LOAD else 1.0)
    slow, quick = job(1, loads=True), job(2)
    device.begin(Phase.LOAD, slow, 10.0)
    device.begin(Phase.EXEC, quick, 10.0)
    assert [phase for phase, _, _ in device.due(100.0)] == [Phase.EXEC, Phase.LOAD]


@pytest.mark.parametrize(("latest_s", "late"), [(10.999, True), (11.0, False), (11.001, False)])
def test_what_could_only_begin_after_its_window_is_late_at_once(latest_s: float, late: bool) -> None:
    device = emulator()
    device.begin(Phase.EXEC, job(1), 10.0)
    done = device.begin(Phase.EXEC, job(2, latest_s=latest_s), 10.0)
    assert figures(done) == ((10.0, 10.0, 0.0, ActionCode.LATE) if late else None)


def test_things_that_end_together_end_in_the_order_they_began() -> None:
    device = emulator()
    first, second = job(1, loads=True), job(2)
    device.begin(Phase.LOAD, first, 10.0)
    device.begin(Phase.EXEC, second, 10.0)
    assert [ended for _, ended, _ in device.due(11.0)] == [first, second]
