"""What is measured of a version, and the file that keeps the figures."""

from pathlib import Path

import pytest

from gpu_worker.profiling import (
    FIRST_RUNS,
    LADDER,
    MORE_BELOW_S,
    MORE_RUNS,
    Measurement,
    profile_file,
    read_profile,
    write_profile,
)
from mesh import wire

KIND = "cpu Some(R) Processor @ 2.0GHz, 1 threads, torch 2.11.0+cpu"
PROFILE = wire.Profile(exec_s={1: 0.010, 2: 0.012, 3: 0.0125}, load_s=0.5, engine="eager")


def run_plan(measurement: Measurement, duration_s: float) -> None:
    """All that the plan asks for is run, and takes so long."""
    for batch, runs in measurement.next_plan():
        for _ in range(runs):
            measurement.ran(batch, duration_s)


@pytest.mark.parametrize(
    ("batch_max", "sizes"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (8, (1, 2, 3, 4, 6, 8)), (1024, LADDER)],
)
def test_sizes_are_those_of_the_ladder_up_to_the_maximum_and_the_maximum(batch_max: int, sizes: tuple[int]) -> None:
    assert Measurement(batch_max).sizes == sizes


def test_first_every_size_is_run_a_few_times_smallest_first() -> None:
    assert Measurement(4).next_plan() == ((1, FIRST_RUNS), (2, FIRST_RUNS), (3, FIRST_RUNS), (4, FIRST_RUNS))


def test_a_plan_is_due_when_it_is_done_and_a_load_was_seen() -> None:
    measurement = Measurement(1)
    measurement.next_plan()
    for _ in range(FIRST_RUNS - 1):
        measurement.ran(1, 1.0)
    measurement.loaded(0.5)
    assert not measurement.due
    measurement.ran(1, 1.0)
    assert measurement.due
    unloaded = Measurement(1)
    run_plan(unloaded, 1.0)
    assert not unloaded.due


def test_quick_sizes_are_run_some_more_and_slow_ones_are_not() -> None:
    measurement = Measurement(2)
    measurement.next_plan()
    for _ in range(FIRST_RUNS):
        measurement.ran(1, MORE_BELOW_S * 0.99)
        measurement.ran(2, MORE_BELOW_S)
    assert measurement.plan() == ((1, MORE_RUNS),)


def test_the_first_run_of_a_size_warms_up_and_does_not_count() -> None:
    measurement = Measurement(1)
    measurement.loaded(0.5)
    measurement.ran(1, 100.0)
    for _ in range(FIRST_RUNS - 1):
        measurement.ran(1, 1.0)
    profile = measurement.profile("eager")
    assert profile is not None
    assert profile.exec_s == {1: 1.0}


def test_the_profile_has_the_medians_once_everything_is_measured() -> None:
    measurement = Measurement(2)
    measurement.loaded(0.4)
    measurement.loaded(0.5)
    measurement.loaded(0.9)
    run_plan(measurement, 0.001)
    assert measurement.profile("eager") is None
    run_plan(measurement, 0.003)
    assert measurement.plan() == ()
    assert measurement.profile("eager") == wire.Profile(exec_s={1: 0.003, 2: 0.003}, load_s=0.5, engine="eager")


def test_there_is_no_profile_without_a_load() -> None:
    measurement = Measurement(1)
    run_plan(measurement, 1.0)
    assert measurement.profile("eager") is None
    measurement.loaded(0.5)
    assert measurement.profile("eager") is not None


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_profile_that_was_kept_is_read_again(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    assert read_profile(tmp_path, KIND, 3) == PROFILE
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == [profile_file(tmp_path, KIND).name]


def test_a_profile_is_written_over_whole(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    other = wire.Profile(exec_s={1: 1.0, 2: 2.0, 3: 3.0}, load_s=1.0, engine="compiled")
    write_profile(tmp_path, KIND, other)
    assert read_profile(tmp_path, KIND, 3) == other
    assert len(list((tmp_path / "profiles").iterdir())) == 1


def test_profiles_of_several_kinds_lie_side_by_side(tmp_path: Path) -> None:
    other = wire.Profile(exec_s={1: 1.0, 2: 2.0, 3: 3.0}, load_s=1.0)
    write_profile(tmp_path, KIND, PROFILE)
    write_profile(tmp_path, "cuda H100, torch 2.11", other)
    assert read_profile(tmp_path, KIND, 3) == PROFILE
    assert read_profile(tmp_path, "cuda H100, torch 2.11", 3) == other


def test_the_file_s_name_has_nothing_that_a_file_system_minds() -> None:
    name = profile_file(Path("v"), "cpu A/B: C*D, torch 2.11.0+cpu").name
    assert name == "cpu-a-b-c-d-torch-2.11.0-cpu.json"


def test_a_profile_of_another_kind_under_the_same_name_is_not_taken(tmp_path: Path) -> None:
    write_profile(tmp_path, "cpu A", PROFILE)
    assert profile_file(tmp_path, "cpu A") == profile_file(tmp_path, "cpu/a")
    assert read_profile(tmp_path, "cpu/a", 3) is None


@pytest.mark.parametrize("batch_max", [2, 4])
def test_a_profile_that_does_not_fit_the_version_any_more_is_not_taken(tmp_path: Path, batch_max: int) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    assert read_profile(tmp_path, KIND, batch_max) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": 1, "kind": 3}'])
def test_a_damaged_profile_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    assert read_profile(tmp_path, KIND, 3) is None
    write_profile(tmp_path, KIND, PROFILE)
    profile_file(tmp_path, KIND).write_bytes(content)
    assert read_profile(tmp_path, KIND, 3) is None


def test_a_profile_of_another_format_is_not_taken(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    file = profile_file(tmp_path, KIND)
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    assert read_profile(tmp_path, KIND, 3) is None


def test_a_profile_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"\S"):
        write_profile(tmp_path / "gone", KIND, PROFILE)
