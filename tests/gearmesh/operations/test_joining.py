"""gearmesh/operations/joining.py: when the worker is in the compact process, and when it has one of its own."""

from pathlib import Path

import pytest

from gearmesh.operations.joining import has_gpu, why_apart
from gearmesh.operations.supervisor import FRONT, PROCFILE, processes_of, procfile_commands
from gearmesh.operations.up import told_of_worker
from mesh.process.settings import Settings

OURS = processes_of(PROCFILE)
LINE = "exec python3 -P -m gpu_worker"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_processor_s_only_worker_is_taken_in(device: str) -> None:
    assert why_apart(Settings(device=device), OURS, {}, lambda: False) == ""
    assert why_apart(Settings(device=device), {"gpu_worker": LINE}, {"gateway": 0}, lambda: False) == ""


def test_with_a_gpu_it_is_taken_in_only_if_the_settings_name_the_processor() -> None:
    assert why_apart(Settings(device="auto"), OURS, {}, lambda: True) != ""
    assert why_apart(Settings(device="cpu"), OURS, {}, lambda: True) == ""


@pytest.mark.parametrize(
    "settings",
    [
        Settings(device="cuda"),
        Settings(device="cuda:1"),
        Settings(device="emulated:h100.json"),
        Settings(device="of-another-package"),
        Settings(cores=(0,)),
        Settings(real_time=True),
        Settings(factory_allow=("mine.models.",)),
    ],
)
def test_what_is_meant_for_the_worker_alone_leaves_it_alone(settings: Settings) -> None:
    assert why_apart(settings, OURS, {}, lambda: False) != ""


@pytest.mark.parametrize("count", [0, 1, 2])
def test_whoever_says_how_many_workers_there_are_gets_them_apart(count: int) -> None:
    formation = {"gpu_worker": count}
    assert why_apart(Settings(), OURS, formation, lambda: False) != ""
    commands = procfile_commands(PROCFILE, formation, compact=True)
    assert len([name for name in commands if name.startswith("gpu_worker")]) == count


@pytest.mark.parametrize(
    ("formation", "told"),
    [
        ({}, "the worker is in the process of the others"),
        ({"gpu_worker": 0}, "no worker is started: -f gpu_worker=0 asks for it"),
        ({"gpu_worker": 1}, "the worker has a process of its own: -f gpu_worker=1 asks for it"),
        ({"gpu_worker": 2}, "workers have processes of their own: -f gpu_worker=2 asks for it"),
    ],
)
def test_the_user_reads_where_the_worker_is_or_that_there_is_none(formation: dict[str, int], told: str) -> None:
    apart = why_apart(Settings(device="cpu"), OURS, formation)
    commands = procfile_commands(PROCFILE, formation, compact=True, worker=not apart)
    assert told_of_worker(apart, commands).startswith(told)


def test_a_procfile_without_a_worker_starts_none(tmp_path: Path) -> None:
    procfile = tmp_path / "Procfile"
    procfile.write_text("".join(f"{name}: exec python3 -P -m {name}\n" for name in FRONT))
    apart = why_apart(Settings(device="cpu"), processes_of(procfile), {})
    told = told_of_worker(apart, procfile_commands(procfile, {}, compact=True, worker=not apart))
    assert told == "no worker is started: the Procfile has no line for it"


@pytest.mark.parametrize("line", ["nice python -m gpu_worker", f"OMP_NUM_THREADS=1 {LINE}", f"{LINE}; echo", ""])
def test_a_line_that_does_more_than_start_a_worker_is_run(line: str) -> None:
    assert why_apart(Settings(), {"gpu_worker": line}, {}, lambda: False) != ""


def test_a_worker_that_is_taken_in_has_no_process_of_its_own() -> None:
    commands = procfile_commands(PROCFILE, {}, compact=True, worker=True)
    assert list(commands) == ["mesh", "gateway"]
    assert commands["mesh"][0].endswith("-m gearmesh.operations.compact worker")


@pytest.mark.parametrize(
    ("file", "found"), [("nvidia0", True), ("dxg", True), ("nvidiactl", False), ("nvme0", False), ("", False)]
)
def test_a_gpu_is_known_by_what_its_driver_makes(file: str, found: bool, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).touch()
    assert has_gpu(tmp_path) == found
