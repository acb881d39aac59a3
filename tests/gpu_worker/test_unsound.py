"""A worker does not serve what breaks the rules of models, whoever wrote the package; and nobody gets a row of a batch
that turns out to."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from broker.errors import PackageError
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.lanes import Done, Phase
from gpu_worker.packages import Package, read_package
from tests.gpu_worker import unsound
from tests.gpu_worker.cpu_builders import at_once, infer_job, put, run

MANIFEST = """
batch_max = 8
[architecture]
factory = "tests.gpu_worker.unsound:{name}"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 4]
"""


def package(repository: Path, name: str) -> Package:
    """The class as a package that nobody has looked at."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MANIFEST.format(name=name))
    save_file(getattr(unsound, name)().state_dict(), folder / "weights.safetensors")
    return read_package(repository, f"{name}:1", ("tests.gpu_worker.unsound:",))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Counts", "state_changed"),
        ("AddsNothing", "state_changed"),
        ("Remembers", "state_changed"),
        ("Largest", "rows_mixed"),
        ("Sorts", "rows_mixed"),
        ("Places", "rows_mixed"),
        ("Sizes", "rows_mixed"),
        ("Drops", "random"),
        ("OneMore", "rows_changed"),
        ("Raises", "forward_failed"),
    ],
)
def test_what_breaks_a_rule_is_refused_when_it_is_prepared(
    device: CpuDevice, tmp_path: Path, name: str, code: str
) -> None:
    with pytest.raises(PackageError) as caught:
        device.prepare(package(tmp_path, name))
    assert caught.value.code == code
    assert at_once(device, Phase.INPUT, infer_job(f"{name}:1", (0,), torch.ones(1, 4))).code == "unknown_model"


def test_what_keeps_the_rules_is_served(device: CpuDevice, tmp_path: Path) -> None:
    device.prepare(package(tmp_path, "Sound"))
    put(device, "Sound:1", (0,))
    x = torch.randn(5, 4)
    (y,) = run(device, infer_job("Sound:1", (0,), x), (5, 4))
    assert torch.equal(x, y)


@pytest.mark.parametrize("name", ["TwiceAbove100", "OneRowLost"])
def test_a_batch_that_comes_out_with_other_rows_fails_as_the_model_s_fault_and_the_next_is_served(
    device: CpuDevice, tmp_path: Path, name: str
) -> None:
    device.prepare(package(tmp_path, name))
    put(device, f"{name}:1", (0,))
    x = torch.ones(4, 4)
    x[1] = 101
    job = infer_job(f"{name}:1", (0,), x, parts=[1, 1, 1, 1])
    assert at_once(device, Phase.INPUT, job).code == "ok"
    done: Done = at_once(device, Phase.EXEC, job)
    assert done.code == "rows_changed"
    assert "[4, 4]" not in done.message
    assert f"{name}:1" in done.message
    assert job.outputs == []
    device.release(job)
    (y,) = run(device, infer_job(f"{name}:1", (0,), torch.ones(4, 4)), (4, 4))
    assert torch.equal(y, torch.ones(4, 4))
