"""Every module and file of the zoo is served as expected, or refused; those made of layers are in test_layers."""

from pathlib import Path

import pytest

from gpu_worker.devices.cpu import CpuDevice
from tests.zoo import families, judging
from tests.zoo.cases import Case

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CASES = [case for name, cases in families.FAMILIES.items() if name not in families.LAYERS for case in cases]
TAKEN, REFUSED = [case for case in CASES if not case.code], [case for case in CASES if case.code]


@pytest.mark.parametrize("case", families.params(TAKEN))
def test_it_is_served_as_it_is(case: Case, tmp_path: Path, device: CpuDevice) -> None:
    error = judging.check(case, tmp_path, device)
    assert error is None


@pytest.mark.parametrize("case", families.params(REFUSED))
def test_it_is_refused_and_told_why(
    case: Case, tmp_path: Path, device: CpuDevice, capfd: pytest.CaptureFixture[str]
) -> None:
    error = judging.check(case, tmp_path, device)
    assert error is not None
    assert capfd.readouterr() == ("", ""), "what was wrong is in the error alone"


def test_every_name_is_there_once() -> None:
    names = [case.name for cases in families.FAMILIES.values() for case in cases]
    assert len(names) == len(set(names))
    assert set(names) > families.QUICK > families.QUICK_LAYERS
