"""PREPARE and FORGET on the CPU: what is refused, with all its faults, and what remains after a refusal."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.package import read_package
from mesh.codes import ActionCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import at_once, infer_job, linear, put
from tests.messages import names


def test_a_prepared_version_has_no_profile_yet(device: CpuDevice, repository: Repository) -> None:
    assert device.measured
    assert device.prepare(repository.package("linear:1")) is None


def test_a_forgotten_version_is_unknown_and_others_of_its_architecture_go_on(
    device: CpuDevice, repository: Repository
) -> None:
    for ref in ("linear:1", "linear:2"):
        device.prepare(repository.package(ref))
    put(device, "linear:2", (0,))
    device.forget("linear:1")
    device.forget("linear:1")
    x = torch.randn(1, 4)
    assert at_once(device, Phase.INPUT, infer_job("linear:1", (0,), x)).code == ActionCode.UNKNOWN_MODEL
    assert at_once(device, Phase.EXEC, infer_job("linear:1", (0,), x)).code == ActionCode.UNKNOWN_MODEL
    assert torch.allclose(linear(device, "linear:2", (0,), x), repository.outputs("linear:2", x)[0])


def test_a_version_may_be_prepared_again_after_it_was_forgotten(device: CpuDevice, repository: Repository) -> None:
    for _ in range(2):
        device.prepare(repository.package("linear:1"))
        put(device, "linear:1", (0,))
        x = torch.randn(1, 4)
        assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])
        device.forget("linear:1")


def test_a_model_larger_than_the_window_or_the_arena_is_refused_with_both_reasons(
    tmp_path: Path, repository: Repository
) -> None:
    package = repository.package("tall:1")
    assert (1 << 20) * 2 < package.image_bytes < (1 << 20) * 3
    for window_mb, arena_mb, reasons in (
        (3, 3, []),
        (2, 3, ["WINDOW"]),
        (3, 2, ["ARENA"]),
        (2, 2, ["WINDOW", "ARENA"]),
    ):
        device = CpuDevice(Settings(data_dir=tmp_path, page_mb=1, arena_mb=arena_mb, window_mb=window_mb))
        if reasons:
            with pytest.raises(PackageError) as caught:
                device.prepare(package)
            assert ["WINDOW" if "GEARMESH_WINDOW_MB" in f else "ARENA" for f in caught.value.faults] == reasons
        else:
            device.prepare(package)
        device.close()


@pytest.fixture
def broken(repository: Repository, tmp_path: Path) -> Path:
    """The package "linear" without an example, to be broken in ways that only its graph shows."""
    shutil.copytree(repository.folder / "linear", tmp_path / "broken" / "linear")
    (tmp_path / "broken" / "linear" / "1" / "example.safetensors").unlink()
    return tmp_path / "broken"


def not_prepared(device: CpuDevice, folder: Path, allow: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(PackageError) as caught:
        device.prepare(read_package(folder, "linear:1", allow))
    return caught.value.faults


def replace(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)


def test_weights_and_inputs_that_the_graph_does_not_take_are_told_all_at_once(device: CpuDevice, broken: Path) -> None:
    weights = broken / "linear" / "1" / "weights.safetensors"
    save_file({"weight": np.zeros((3, 5), np.float32), "bias": np.zeros(3, np.float16)}, weights)
    replace(
        broken / "linear" / "1" / "model.toml",
        ('dtype = "float32"\nshape = [-1, 4]', 'dtype = "int32"\nshape = [-1, 7]'),
    )
    weight, bias, x = not_prepared(device, broken)
    assert names(weight, "weight", "float32", "[3, 4]", "[3, 5]")
    assert names(bias, "bias", "float32", "float16")
    assert names(x, "input x", "float32", "[batch, 4]", "int32", "[-1, 7]")


def test_an_input_too_many_is_told(device: CpuDevice, broken: Path) -> None:
    manifest = broken / "linear" / "1" / "model.toml"
    manifest.write_text(manifest.read_text() + '\n[[inputs]]\nname = "z"\ndtype = "float32"\nshape = [-1, 4]\n')
    (fault,) = not_prepared(device, broken)
    assert names(fault, 3, 4, "weights.safetensors", "model.toml")


SECOND_OUTPUT = '[[outputs]]\nname = "z"\ndtype = "float32"\nshape = [-1]'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[-1, 3]", "[-1, 4]", ("output y", "[1, 3]", "[-1, 4]")),
        ("[-1, 3]", "[-1, 3, 1]", ("output y",)),
        ("[-1, 3]", f"[-1, 3]\n{SECOND_OUTPUT}", (1, 2)),
    ],
)  # fmt: skip
def test_outputs_that_are_not_as_promised_are_told(
    device: CpuDevice, broken: Path, old: str, new: str, named: tuple[object, ...]
) -> None:
    replace(broken / "linear" / "1" / "model.toml", (old, new))
    (told,) = not_prepared(device, broken)
    assert names(told, *named)


def test_a_version_that_was_refused_leaves_nothing_on_the_device(
    device: CpuDevice, broken: Path, repository: Repository
) -> None:
    replace(broken / "linear" / "1" / "model.toml", ("[-1, 3]", "[-1, 4]"))
    not_prepared(device, broken)
    assert at_once(device, Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4))).code == ActionCode.UNKNOWN_MODEL
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    x = torch.randn(1, 4)
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])


def test_weights_that_change_on_disk_afterwards_do_not_matter(
    device: CpuDevice, broken: Path, repository: Repository
) -> None:
    device.prepare(read_package(broken, "linear:1", ()))
    file = broken / "linear" / "1" / "weights.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    put(device, "linear:1", (0,))
    x = torch.randn(1, 4)
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])


FACTORY = 'factory = "torch.nn:Linear"\nfactory_args = {in_features = 4, out_features = 3}'


def test_an_architecture_may_come_from_a_factory_instead_of_a_graph(
    device: CpuDevice, broken: Path, repository: Repository
) -> None:
    replace(broken / "linear" / "1" / "model.toml", ('graph = "graph.pt2"', FACTORY))
    device.prepare(read_package(broken, "linear:1", ("torch.nn",)))
    put(device, "linear:1", (0,))
    x = torch.randn(5, 4)
    assert torch.allclose(linear(device, "linear:1", (0,), x), repository.outputs("linear:1", x)[0])


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        ('factory = "torch.nn:Nonsense"', ("torch.nn:Nonsense", "AttributeError")),
        ('factory = "torch.nn.nonsense:Linear"', ("torch.nn.nonsense:Linear", "ModuleNotFoundError")),
        ('factory = "torch.nn:Linear"', ("torch.nn:Linear", "TypeError")),
        (FACTORY.replace("= 3", "= 2"), ("bias", "[2]", "weights.safetensors", "[3]")),
        (FACTORY.replace("}", ", bias = false}"), ("weights.safetensors", "bias")),
        ('factory = "torch.nn:PReLU"', ("weights.safetensors", "bias")),
    ],
)  # fmt: skip
def test_a_factory_that_fails_or_does_not_fit_the_weights_is_told(
    device: CpuDevice, broken: Path, factory: str, named: tuple[str, ...]
) -> None:
    replace(broken / "linear" / "1" / "model.toml", ('graph = "graph.pt2"', factory))
    told = not_prepared(device, broken, ("torch.nn",))
    assert any(names(one, *named) for one in told), told
