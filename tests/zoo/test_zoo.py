"""Every module and file of the zoo is served as it is, or refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broker.config import Settings
from gpu_worker.devices.cpu import CpuDevice
from tests.zoo import families, judging
from tests.zoo.cases import Case

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CASES = [case for cases in families.FAMILIES.values() for case in cases]
OF_FEW_ROWS = (
    "keyword_only",
    "a_dozen_inputs",
    "multihead_attention",
    "lstm",
    "recommender",
    "onnx_two_inputs",
    "bert",
)
TAKEN, REFUSED = [case for case in CASES if not case.code], [case for case in CASES if case.code]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuDevice]:
    """One for all, on this thread."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    made = CpuDevice(
        Settings(data_dir=tmp_path_factory.mktemp("zoo"), device="cpu", page_mb=1, arena_mb=8, window_mb=4)
    )
    yield made
    made.close()
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_it_is_served_as_it_is(case: Case, tmp_path: Path, device: CpuDevice) -> None:
    error = judging.check(case, tmp_path, device)
    assert error is None


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_it_is_refused_and_told_why(
    case: Case, tmp_path: Path, device: CpuDevice, capfd: pytest.CaptureFixture[str]
) -> None:
    error = judging.check(case, tmp_path, device)
    assert error is not None
    assert capfd.readouterr() == ("", ""), "what was wrong is in the error alone"


@pytest.mark.parametrize("name", OF_FEW_ROWS)
@pytest.mark.parametrize("batch_max", [1, 2, 3])
def test_it_is_served_as_it_is_where_batches_are_small(
    name: str, batch_max: int, tmp_path: Path, device: CpuDevice
) -> None:
    case = next(case for case in TAKEN if case.name == name)
    judging.check(replace(case, options={**case.options, "batch_max": batch_max}), tmp_path, device)


def test_every_name_is_there_once() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
