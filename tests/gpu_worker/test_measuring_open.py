"""A real encoder with an open dimension, measured on the CPU by a worker's own lanes."""

import asyncio
import itertools
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu_worker.core.jobs import Report
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Pump
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.gauge import MemoryGauge
from gpu_worker.packages.export import write_package
from gpu_worker.preparation import RepositoryVersions
from mesh import wire
from mesh.codes import ActionCode, PackageCode
from mesh.process.settings import Settings
from tests.loops import on_loop

REF = "encoder:1"
FOREVER_S = 1e12


class Encoder(nn.Module):
    """Means of the encoded tokens that the mask shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        encoded = self.encoder(self.embedding(ids), src_key_padding_mask=~mask)
        real = mask.unsqueeze(-1).to(encoded.dtype)
        means: torch.Tensor = (encoded * real).sum(1) / real.sum(1).clamp(min=1)
        return means


class Bag(nn.Module):
    """Means of wide embeddings of the tokens that the mask shows: quick, and large in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 512)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        real = mask.unsqueeze(-1).to(torch.float32)
        means: torch.Tensor = (self.embedding(ids) * real).sum(1) / real.sum(1).clamp(min=1)
        return means


class Worker:
    """A CPU device with its lanes and versions; a test is its controller."""

    def __init__(self, folder: Path, *, batch_memory_mb: int = 0) -> None:
        made = Settings(
            data_dir=folder / "data", model_repository=folder / "models", arena_mb=16, page_mb=1,
            batch_memory_mb=batch_memory_mb,
        )  # fmt: skip
        self.device = CpuDevice(made)
        self.versions = RepositoryVersions(asyncio.get_running_loop(), self.device, folder / "models", ())
        self.results: asyncio.Queue[wire.ActionResult] = asyncio.Queue()
        self.reports: asyncio.Queue[wire.Prepared] = asyncio.Queue()
        lanes = Lanes(PageTable(self.device.info.pages), self.device.depth, self.device.ahead_s)
        self.pump = Pump(lanes, self.device, self._report)
        self.device.attach(
            lambda phase, job, done: self.pump.finished(phase, job, done, now=time.monotonic()), lambda why: None
        )
        self.versions.attach(self.pump, self.reports.put_nowait)
        self._numbers = itertools.count(1)

    def _report(self, report: Report) -> None:
        job = report.job
        assert job is not None
        if report.result.code == ActionCode.OK and report.result.duration_s is not None:
            taken = job.exec.memory_bytes if job.exec is not None else 0
            self.versions.executed(job.action, report.result.duration_s, taken)
        self.results.put_nowait(report.result)

    async def load(self) -> str:
        """Returns the code of a LOAD."""
        action = wire.Load(action=next(self._numbers), ref=REF, earliest_s=0.0, latest_s=FOREVER_S, expected_s=0.1)
        self.pump.load(action, 0, now=time.monotonic())
        return (await self.results.get()).code

    async def infer(self, batch: int, extents: tuple[int, ...]) -> str:
        """Returns the code of a measuring run."""
        action = wire.Infer(
            action=next(self._numbers), ref=REF, earliest_s=0.0, latest_s=FOREVER_S, expected_s=0.1, batch=batch,
            extents=extents,
        )  # fmt: skip
        self.pump.infer(action, 0, (), now=time.monotonic())
        return (await self.results.get()).code

    async def measured(self) -> wire.Prepared:
        """Returns the last report, once everything that was asked for has been run."""
        self.versions.prepare(REF, "")
        report = await self.reports.get()
        assert report.ok, report.faults
        assert await self.load() == ActionCode.OK
        while report.ok and report.profile is None:
            for batch, runs, extents in report.measure:
                for _ in range(runs):
                    assert await self.infer(batch, extents) == ActionCode.OK
            report = await self.reports.get()
        return report

    def close(self) -> None:
        """The device is free."""
        self.versions.close()
        self.device.close()


def write(folder: Path, module: nn.Module, most: int) -> None:
    """The repository has the module, for rows of tokens up to this many."""
    torch.manual_seed(1)
    inputs: dict[str, tuple[str, tuple[int | str, ...]]] = {"ids": ("int64", ("seq",)), "mask": ("bool", ("seq",))}
    write_package(
        folder / "models", "encoder", "1", module.eval(), inputs=inputs, outputs=["embedding"],
        dims={"seq": (1, most)}, batch_max=4, slo_ms=50.0,
    )  # fmt: skip


@on_loop
async def test_it_is_measured_served_with_what_fits_and_its_profile_is_kept(tmp_path: Path) -> None:
    write(tmp_path, Encoder(), 64)
    worker = Worker(tmp_path)
    try:
        report = await worker.measured()
        assert report.ok, report.faults
        assert report.profile is not None
        assert [cell.extents for cell in report.profile.sizes][-1] == (64,)
        assert all(1 in cell.exec_s for cell in report.profile.sizes)
        assert await worker.infer(max(report.profile.exec_s), (64,)) == ActionCode.OK
        assert await worker.infer(1, (65,)) == ActionCode.BAD_INPUT
        worker.versions.forget(REF)
        worker.versions.prepare(REF, "")
        again = await worker.reports.get()
        assert again.profile == report.profile
    finally:
        worker.close()


@on_loop
async def test_if_no_row_of_the_greatest_length_fits_it_is_refused_with_the_length_that_does(tmp_path: Path) -> None:
    if not MemoryGauge().begin(REF, (1, (1,))):
        pytest.skip("this kernel does not let a process reset its peak")
    write(tmp_path, Bag(), 2048)
    worker = Worker(tmp_path, batch_memory_mb=1)
    try:
        report = await worker.measured()
        assert (report.ok, report.code) == (False, PackageCode.NO_MEMORY)
        assert "one row of seq = 2048 does not fit in the 1 MiB" in report.faults[0]
        assert worker.versions.reports() == ()
    finally:
        worker.close()
