"""Choosing between executables, and bounded processes. Compiling itself is tested in tests/end_to_end."""

import errno
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gpu_worker.devices.execution.compiled import Compiler, compare, find_compiler, run_bounded
from tests.disks import refuse
from tests.gpu_worker.conftest import Repository
from tests.loops import LIMIT_S
from tests.messages import names

WEIGHTS = [torch.zeros(3, 4), torch.zeros(3)]


class Clock:
    """A clock that advances only when an executable runs."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def runs(self, *seconds: float) -> Callable[..., Sequence[torch.Tensor]]:
        """Returns an executable that takes these times in turn."""
        times = itertools.cycle(seconds)

        def forward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
            self.now_s += next(times)
            return linear(*flat)

        return forward


def linear(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> Sequence[torch.Tensor]:
    """[rows, 4] -> [rows, 3]."""
    return [x @ weight.T + bias]


@pytest.mark.parametrize(
    ("eager", "compiled", "gain", "steady"),
    [
        ([0.002], [0.001], 0.5, True),
        ([0.001], [0.002], -1.0, True),
        ([0.001], [0.001], 0.0, True),
        ([0.002], [*[0.001] * 7, *[0.01] * 3], 0.5, False),
        ([*[0.002] * 7, *[0.02] * 3], [*[0.001] * 7, *[0.01] * 3], 0.5, True),
    ],
)
def test_gain_is_the_share_of_time_saved_and_steadiness_is_measured_against_the_eager_one(
    repository: Repository, eager: list[float], compiled: list[float], gain: float, steady: bool
) -> None:
    clock = Clock()
    package = repository.package("linear:1")
    found = compare(package, WEIGHTS, clock.runs(*eager), clock.runs(*compiled), clock)
    assert found == (pytest.approx(gain), steady)


def test_one_with_other_results_is_never_chosen(repository: Repository) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        compare(repository.package("linear:1"), WEIGHTS, linear, lambda *flat: [linear(*flat)[0] + 1.0])


@pytest.mark.parametrize("seconds_max", [0.0, 60.0])
def test_nothing_is_compiled_unless_it_is_allowed_and_possible(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_max: float
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert find_compiler() is None
    compiler = Compiler(tmp_path / "executables", "cpu x", seconds_max, 1)
    assert compiler.better(repository.package("linear:1"), linear, WEIGHTS) is None
    assert not (tmp_path / "executables").exists()


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_compilation_that_takes_too_long_is_ended_and_not_tried_again(repository: Repository, tmp_path: Path) -> None:
    package = repository.package("linear:1")
    assert Compiler(tmp_path, "cpu x", 0.05, 1).better(package, linear, WEIGHTS) is None
    (word,) = tmp_path.iterdir()
    assert word.suffix == ".failed"
    assert names(word.read_text(), "0.05", "GEARMESH_COMPILE_S_MAX")
    assert Compiler(tmp_path, "cpu x", 600.0, 1).better(package, linear, WEIGHTS) is None
    assert list(tmp_path.iterdir()) == [word]


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_compilation_on_a_disk_that_takes_nothing_says_nothing_of_the_architecture(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        refuse(full, tmp_path, "open", errno.ENOSPC)
        assert Compiler(tmp_path, "cpu x", 0.05, 1).better(repository.package("linear:1"), linear, WEIGHTS) is None
    assert list(tmp_path.iterdir()) == []  # it is tried again another time


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_damaged_executable_is_passed_over(repository: Repository, tmp_path: Path) -> None:
    package = repository.package("linear:1")
    Compiler(tmp_path, "cpu x", 0.05, 1).better(package, linear, WEIGHTS)
    (word,) = tmp_path.iterdir()  # that it was not compiled
    word.unlink()
    word.with_suffix(".pt2").write_bytes(b"nonsense")
    assert Compiler(tmp_path, "cpu x", 60.0, 1).better(package, linear, WEIGHTS) is None


@pytest.mark.parametrize(
    ("program", "seconds_max", "told"),
    [("pass", LIMIT_S, ""), ("raise SystemExit(3)", LIMIT_S, "3"), ("import signal; signal.pause()", 0.5, "0.5 s")],
)
def test_a_process_is_bounded_and_its_end_is_told(program: str, seconds_max: float, told: str) -> None:
    why = run_bounded([sys.executable, "-S", "-c", program], seconds_max)
    assert told in why
    assert bool(why) == bool(told)
