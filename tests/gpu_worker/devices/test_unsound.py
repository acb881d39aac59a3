"""A worker serves nothing that breaks the rules of models, whoever wrote the package.

Nobody gets a row of a batch whose outputs break them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpu_worker.core.jobs import Done, Phase
from gpu_worker.devices import cpu
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.execution.executables import check_by_running
from gpu_worker.packages.package import Package, read_package
from mesh.codes import ActionCode, PackageCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.gpu_worker.devices import unsound
from tests.gpu_worker.devices.cpu_builders import at_once, infer_job, put, run
from tests.gpu_worker.devices.cuda.cuda_builders import served
from tests.loops import on_loop

MANIFEST = """
batch_max = {batch_max}
[architecture]
factory = "tests.gpu_worker.devices.unsound:{name}"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 4]
"""


def package(repository: Path, name: str, version: str = "1", *, weight: float = 1.0, batch_max: int = 8) -> Package:
    """Returns the class as a package that was never checked."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MANIFEST.format(name=name, batch_max=batch_max))
    state = getattr(unsound, name)().state_dict()
    save_file({**state, "weight": torch.full_like(state["weight"], weight)}, folder / "weights.safetensors")
    return read_package(repository, f"{name}:{version}", ("tests.gpu_worker.devices.unsound:",))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Counts", PackageCode.STATE_CHANGED),
        ("AddsNothing", PackageCode.STATE_CHANGED),
        ("Remembers", PackageCode.STATE_CHANGED),
        ("Largest", PackageCode.ROWS_MIXED),
        ("Sorts", PackageCode.ROWS_MIXED),
        ("Places", PackageCode.ROWS_MIXED),
        ("Sizes", PackageCode.ROWS_MIXED),
        ("Drops", PackageCode.RANDOM),
        ("OneMore", PackageCode.ROWS_CHANGED),
        ("Raises", PackageCode.FORWARD_FAILED),
    ],
)
def test_what_breaks_a_rule_is_refused_when_it_is_prepared(
    device: CpuDevice, tmp_path: Path, name: str, code: str
) -> None:
    with pytest.raises(PackageError) as caught:
        device.prepare(package(tmp_path, name))
    assert caught.value.code == code
    assert at_once(device, Phase.INPUT, infer_job(f"{name}:1", (0,), torch.ones(1, 4))).code == ActionCode.UNKNOWN_MODEL


LATER = [
    ("Gate", {}, {"weight": 2.0}, PackageCode.ROWS_MIXED),
    ("Centred", {"batch_max": 1}, {}, PackageCode.ROWS_MIXED),
    ("OneRow", {"batch_max": 1}, {}, PackageCode.FORWARD_FAILED),
]  # (class, options of the first preparation, of the later one, code of its refusal)


@pytest.mark.parametrize(("name", "first", "later", "code"), LATER)
@on_loop
async def test_a_version_is_tried_with_its_own_weights_and_batches_though_its_architecture_is_known(
    settings: Settings, tmp_path: Path, name: str, first: dict[str, Any], later: dict[str, Any], code: str
) -> None:
    async with served("host") as on:
        processor = CpuDevice(settings)
        for device in (processor, on.device):
            folder = tmp_path / device.info.name
            sound, other = package(folder, name, **first), package(folder, name, "2", **later)
            assert sound.architecture == other.architecture
            device.prepare(sound)
            for _ in range(2):
                with pytest.raises(PackageError) as caught:
                    device.prepare(other)
                assert caught.value.code == code
            device.prepare(sound)
        for device in (processor, on.device):
            device.check()
            assert device.traits(f"{name}:1").load_from == "host"
            refused = device.begin(Phase.INPUT, infer_job(f"{name}:2", (0,), torch.zeros(1, 4)))
            assert refused is not None
            assert refused.code == ActionCode.UNKNOWN_MODEL
        processor.close()


def test_an_equal_version_is_not_tried_again_and_one_with_another_example_is(
    device: CpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def check(package: Package, *args: Any, **options: Any) -> None:
        tried.append(package.ref)
        check_by_running(package, *args, **options)

    monkeypatch.setattr(cpu, "check_by_running", check)
    for version in ("1", "2"):
        device.prepare(package(tmp_path, "Sound", version))
    assert tried == ["Sound:1"]
    device.forget("Sound:1")
    device.prepare(package(tmp_path, "Sound", "3", batch_max=4))
    assert tried == ["Sound:1", "Sound:3"]
    last = package(tmp_path, "Sound", "4")
    save_file({"x": torch.ones(2, 4)}, last.folder / "example.safetensors")
    device.prepare(last)
    assert tried == ["Sound:1", "Sound:3", "Sound:4"]


def test_trying_a_version_leaves_the_weights_of_others_that_share_its_image_as_they_are(
    device: CpuDevice, tmp_path: Path
) -> None:
    """A model that writes to its weights in large batches only is detected on a copy; the first version stays right."""
    device.prepare(package(tmp_path, "WritesLarge", batch_max=1))
    with pytest.raises(PackageError):
        device.prepare(package(tmp_path, "WritesLarge", "2"))
    put(device, "WritesLarge:1", (0,))
    x = torch.randn(1, 4)
    assert torch.equal(run(device, infer_job("WritesLarge:1", (0,), x), (1, 4))[0], x)


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
    assert at_once(device, Phase.INPUT, job).code == ActionCode.OK
    done: Done = at_once(device, Phase.EXEC, job)
    assert done.code == ActionCode.ROWS_CHANGED
    assert "[4, 4]" not in done.message
    assert f"{name}:1" in done.message
    assert job.outputs == []
    device.release(job)
    (y,) = run(device, infer_job(f"{name}:1", (0,), torch.ones(4, 4)), (4, 4))
    assert torch.equal(y, torch.ones(4, 4))
