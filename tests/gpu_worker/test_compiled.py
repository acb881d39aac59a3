"""Choosing between executables, and processes that are bounded. Compiling itself: tests/end_to_end."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gpu_worker.devices.compiled import Compiler, compare, find_compiler, run_bounded
from tests.gpu_worker.conftest import Repository

WEIGHTS = [torch.zeros(3, 4), torch.zeros(3)]


def linear(seconds: float = 0.0, add: float = 0.0) -> Callable[..., Sequence[torch.Tensor]]:
    """An executable that takes so long."""

    def forward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        weight, bias, x = flat
        ends_s = time.perf_counter() + seconds
        while time.perf_counter() < ends_s:
            pass
        return [x @ weight.T + bias + add]

    return forward


def test_the_quicker_one_saves_its_share_of_the_time(repository: Repository) -> None:
    spec = repository.package("linear:1").spec
    gain, _ = compare(spec, WEIGHTS, linear(0.002), linear(0.001))
    assert 0.2 < gain < 0.7
    gain, _ = compare(spec, WEIGHTS, linear(0.001), linear(0.002))
    assert gain < -0.3


def test_one_with_other_results_is_never_chosen(repository: Repository) -> None:
    with pytest.raises(ValueError, match="differs from the eager one's"):
        compare(repository.package("linear:1").spec, WEIGHTS, linear(), linear(add=1.0))


@pytest.mark.parametrize("seconds_max", [0.0, 60.0])
def test_nothing_is_compiled_unless_it_is_allowed_and_possible(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_max: float
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert find_compiler() is None
    compiler = Compiler(tmp_path / "executables", "cpu x", seconds_max, 1)
    assert compiler.better(repository.package("linear:1"), linear(), WEIGHTS) is None
    assert not (tmp_path / "executables").exists()


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_compilation_that_takes_too_long_is_ended_and_not_tried_again(repository: Repository, tmp_path: Path) -> None:
    package = repository.package("linear:1")
    began_s = time.monotonic()
    assert Compiler(tmp_path, "cpu x", 0.05, 1).better(package, linear(), WEIGHTS) is None
    assert time.monotonic() - began_s < 5.0
    (word,) = tmp_path.iterdir()
    assert word.suffix == ".failed"
    assert word.read_text().startswith("took longer than 0.05 s (GEARMESH_COMPILE_S_MAX)")
    assert Compiler(tmp_path, "cpu x", 600.0, 1).better(package, linear(), WEIGHTS) is None
    assert list(tmp_path.iterdir()) == [word]


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_damaged_executable_is_passed_over(repository: Repository, tmp_path: Path) -> None:
    package = repository.package("linear:1")
    compiler = Compiler(tmp_path, "cpu x", 60.0, 1)
    compiler._file(package).write_bytes(b"nonsense")
    assert compiler.better(package, linear(), WEIGHTS) is None


@pytest.mark.parametrize(
    ("program", "told"),
    [("pass", ""), ("raise SystemExit(3)", "exit code 3"), ("import time; time.sleep(60)", "took longer than 0.5 s")],
)
def test_a_process_is_bounded_and_its_end_is_told(program: str, told: str) -> None:
    why = run_bounded([sys.executable, "-S", "-c", program], 0.5 if told.startswith("took") else 30.0)
    assert why.startswith(told)
    assert bool(why) == bool(told)
