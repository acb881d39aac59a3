"""Serves the zoo's modules that are made of layers, and batches of few rows. The others are in test_zoo."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpu_worker.devices.cpu import CpuDevice
from tests.zoo import families, judging
from tests.zoo.cases import Case

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CASES = [case for name in families.LAYERS for case in families.FAMILIES[name]]
KNOWN = {case.name: case for cases in families.FAMILIES.values() for case in cases}
OF_FEW_ROWS = (
    "keyword_only", "a_dozen_inputs", "recommender", "onnx_two_inputs",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("multihead_attention", "lstm", "bert")),
)  # fmt: skip


@pytest.mark.parametrize("case", families.params(CASES))
def test_it_is_served_as_it_is_or_refused(
    case: Case, tmp_path: Path, device: CpuDevice, capfd: pytest.CaptureFixture[str]
) -> None:
    error = judging.check(case, tmp_path, device)
    assert (error is None) == (not case.code)
    assert error is None or capfd.readouterr() == ("", ""), "what was wrong is in the error alone"


@pytest.mark.parametrize("name", OF_FEW_ROWS)
@pytest.mark.parametrize("batch_max", [1, 2, 3])
def test_it_is_served_as_it_is_where_batches_are_small(
    name: str, batch_max: int, tmp_path: Path, device: CpuDevice
) -> None:
    case = KNOWN[name]
    judging.check(replace(case, options={**case.options, "batch_max": batch_max}), tmp_path, device)
