"""Every module of the zoo is served as it is, or refused."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from broker.config import Settings
from broker.errors import PackageError
from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.devices.executables import load_forward
from gpu_worker.export import write_package
from gpu_worker.importing.plain import tensors_in
from gpu_worker.onnx_import import write_onnx_package
from gpu_worker.packages import Package, read_package
from tests.zoo import (
    attention,
    convolutional,
    decisions,
    dtypes,
    lookups,
    memory,
    norms,
    onnx_files,
    recurrent,
    rows,
    shapes,
    signatures,
    structure,
)
from tests.zoo.cases import Case
from tests.zoo.serving import BATCH_MAX, Run, check_served

FAMILIES = (
    attention, recurrent, convolutional, norms, lookups, decisions, rows, shapes, memory, dtypes, signatures, structure,
)  # fmt: skip
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CASES = [case for family in FAMILIES for case in family.CASES]
FAULT_MAX = 500  # characters


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuDevice]:
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    made = CpuDevice(
        Settings(data_dir=tmp_path_factory.mktemp("zoo"), device="cpu", page_mb=1, arena_mb=8, window_mb=4)
    )
    yield made
    made.close()
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [case for case in CASES if not case.code], ids=lambda case: case.name)
def test_a_module_is_served_as_it_is(case: Case, tmp_path: Path, device: CpuDevice) -> None:
    module = made(case)
    before = state(module)
    write(case, module, tmp_path)
    assert state(module) == before
    package = read_package(tmp_path, "m:1", ())
    assert {s.name: (s.dtype, s.shape[1:]) for s in package.spec.outputs} == case.outputs
    if case.norms is not None:
        assert norms_in(package) == case.norms
    check_served(device, package, case, reference(module, case))


@pytest.mark.parametrize("case", [case for case in CASES if case.code], ids=lambda case: case.name)
def test_a_module_is_refused_and_told_why(case: Case, tmp_path: Path) -> None:
    module = made(case)
    before = state(module)
    with pytest.raises(PackageError) as caught:
        write(case, module, tmp_path)
    assert caught.value.code == case.code
    assert list(tmp_path.iterdir()) == []
    assert state(module) == before
    assert all("\n" not in fault and len(fault) < FAULT_MAX for fault in caught.value.faults)


@pytest.mark.parametrize("case", [case for case in onnx_files.CASES if not case.code], ids=lambda case: case.name)
def test_an_onnx_file_is_served_as_it_is(case: Case, tmp_path: Path, device: CpuDevice) -> None:
    case.make(tmp_path / "m.onnx")
    write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", batch_max=BATCH_MAX)
    package = read_package(tmp_path / "r", "m:1", ())
    assert {s.name: (s.dtype, s.shape[1:]) for s in package.spec.outputs} == case.outputs
    check_served(device, package, case, by_onnxruntime(tmp_path / "m.onnx", case))


@pytest.mark.parametrize("case", [case for case in onnx_files.CASES if case.code], ids=lambda case: case.name)
def test_an_onnx_file_is_refused_and_told_why(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case.make(tmp_path / "m.onnx")
    with pytest.raises(PackageError) as caught:
        write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", batch_max=BATCH_MAX)
    assert caught.value.code == case.code
    assert not (tmp_path / "r").exists() or list((tmp_path / "r").iterdir()) == []
    assert all("\n" not in fault and len(fault) < FAULT_MAX for fault in caught.value.faults)
    assert capfd.readouterr() == ("", "")


def by_onnxruntime(file: Path, case: Case) -> Run:
    """What the file itself gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        named = {name: tensor.numpy() for name, tensor in zip(case.inputs, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(list(case.outputs), named)]

    return run


def made(case: Case) -> nn.Module:
    torch.manual_seed(0)
    with torch.set_grad_enabled(True):
        module: nn.Module = case.make()
    return module


def write(case: Case, module: nn.Module, folder: Path) -> None:
    write_package(folder, "m", "1", module, inputs=case.inputs, **({"batch_max": BATCH_MAX} | case.options))


def state(module: nn.Module) -> dict[str, object]:
    """Of a module, to be compared."""
    if not isinstance(module, nn.Module):
        return {}
    tensors = {name: (id(tensor), tensor._version) for name, tensor in tensors_in(module).items()}
    return tensors | {"training": [part.training for part in module.modules()]}


def reference(module: nn.Module, case: Case) -> Run:
    """What the module itself gives, as people call it: output by output."""
    whole = module if isinstance(module, torch.fx.GraphModule) else module.eval()

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        named = {name: tensor.clone() for name, tensor in zip(case.inputs, inputs, strict=True)}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nested tensors, in which torch keeps padded sequences
            value = whole(**named) if case.by_name else whole(*named.values())
        return [as_served(picked(value, name), len(inputs[0])) for name in case.where or case.outputs]

    return run


def picked(value: Any, name: str) -> torch.Tensor:
    """What lies there: `a.0.b`, or the only thing there is."""
    for step in name.split(".") if name != "output" else ():
        if isinstance(value, Mapping):
            value = value[step] if step in value else value[int(step)]
        else:
            value = value[int(step)] if step.isdigit() else getattr(value, step)
    return torch.as_tensor(value)


def as_served(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """What holds for all rows is given with each; bfloat16 does not travel."""
    whole = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return whole.expand(rows) if whole.ndim == 0 else whole


def norms_in(package: Package) -> int:
    graph = load_forward(package).__self__.graph
    return sum(node.target is torch.ops.aten.batch_norm.default for node in graph.nodes)
