"""The memory that runs take in this process, as the kernel counts it."""

import time

import numpy as np
import pytest
import torch

from gpu_worker.core.figures import SizedFigures
from gpu_worker.core.measuring_sizes import SizedMeasurement
from gpu_worker.core.surveying import Survey
from gpu_worker.devices.gauge import MemoryGauge
from mesh import wire
from mesh.sizes import Extents

MIB = 1 << 20


@pytest.fixture
def gauge() -> MemoryGauge:
    made = MemoryGauge()
    if not made.begin("m:1", (1, (1,))):
        pytest.skip("this kernel does not let a process reset its peak")
    return made


def taken_mib(gauge: MemoryGauge, ref: str, size_mib: int, *, kept: bool = False) -> float:
    """What a run that needs so much takes, as it is read."""
    assert gauge.begin(ref, (1, (size_mib,)))
    np.ones(size_mib * MIB, np.uint8).sum()
    return gauge.read(ref, kept=kept) / MIB


def test_a_run_takes_what_it_held_at_its_peak_though_it_has_freed_it(gauge: MemoryGauge) -> None:
    for size_mib in (64, 16, 128):
        taken = taken_mib(gauge, "m:1", size_mib)
        assert 0.9 * size_mib <= taken < size_mib + 48, "what was taken before does not count"


def test_what_an_engine_keeps_for_later_runs_counts(gauge: MemoryGauge) -> None:
    kept = np.ones(64 * MIB, np.uint8)
    assert taken_mib(gauge, "m:1", 8) < 48
    assert taken_mib(gauge, "m:1", 9, kept=True) >= 64
    assert taken_mib(gauge, "n:1", 8, kept=True) < 48, "it was there before this version"
    gauge.forget("m:1")
    assert taken_mib(gauge, "m:1", 10, kept=True) < 48
    assert kept[0] == 1


def test_of_equal_runs_in_a_row_the_first_is_read(gauge: MemoryGauge) -> None:
    found = [
        gauge.begin(ref, (batch, (8,))) for ref, batch in (("m:1", 1), ("m:1", 1), ("n:1", 1), ("m:1", 1), ("m:1", 2))
    ]
    assert found == [True, False, True, True, True]


def test_a_real_encoder_is_measured_within_the_memory_that_a_batch_may_take(gauge: MemoryGauge) -> None:
    torch.manual_seed(1)
    layer = torch.nn.TransformerEncoderLayer(32, 8, 64, batch_first=True).eval()
    attention = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    allowed = 48 * MIB  # attention's weights take 4 x 8 x batch x length^2 bytes, 32 MiB of 16 rows of 256, and more

    def run(batch: int, extents: Extents) -> tuple[float, int]:
        rows, mask = torch.randn(batch, *extents, 32), torch.zeros(batch, *extents, dtype=torch.bool)
        mask[:, -1] = extents[0] > 1
        seen = gauge.begin("encoder:1", (batch, extents))
        began_s = time.monotonic()
        with torch.inference_mode():
            attention(rows, src_key_padding_mask=mask)
        return time.monotonic() - began_s, gauge.read("encoder:1") if seen else 0

    dims = (wire.Dim(name="seq", least=1, most=256),)
    measurement = SizedMeasurement(Survey(dims, 16, 0.05), SizedFigures(allowed))
    measurement.loaded(0.1)
    while plan := measurement.next_plan():
        for batch, runs, extents in plan:
            for _ in range(runs):
                seconds, taken = run(batch, extents)
                measurement.ran(batch, seconds, extents, taken)
    profile = measurement.profile("eager")
    assert profile is not None, measurement.fault
    readings = measurement.figures.taken
    assert max(readings.values()) <= 1.25 * allowed, "what is run is foretold with room to spare"
    assert max(profile.exec_s) < 16, "16 rows of the greatest length take more"
    for cell in profile.sizes:
        assert measurement.figures.fitted((max(cell.exec_s), cell.extents))
        assert list(cell.exec_s.values()) == sorted(cell.exec_s.values())
