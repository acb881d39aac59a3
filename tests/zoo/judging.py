"""Checks whether a case has its expected outcome, for the tests and for scripts/zoo."""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.export import write_package
from gpu_worker.packages.importing.onnx_files import write_onnx_package
from gpu_worker.packages.importing.plain import tensors_in
from gpu_worker.packages.judging.behaviour import mark
from gpu_worker.packages.package import Package, read_package
from mesh.errors import PackageError
from tests.zoo.cases import Case, NotTheSwitch
from tests.zoo.reading import check_read_as_by_torch
from tests.zoo.serving import BATCH_MAX, Run, check_served

FAULT_MAX = 500  # characters of a fault's sentence


def check(case: Case, folder: Path, device: CpuDevice) -> PackageError | None:
    """The case is served as expected, or refused as expected. Returns how it was refused."""
    file, repository = folder / "m.onnx", folder / "repository"
    module = _made(case, file)
    before = _state(module)
    options = {"batch_max": BATCH_MAX, **case.options}
    error: PackageError | None = None
    try:
        if case.file:
            write_onnx_package(repository, "m", "1", file, **options)
        else:
            write_package(repository, "m", "1", module, inputs=case.inputs, **options)
    except PackageError as raised:
        error = raised
    assert _state(module) == before, "the module is another one than before"
    if error is not None:
        _check_refusal(case, error, repository)
        return error
    assert not case.code, "it was written"
    package = read_package(repository, "m:1", ())
    assert {s.name: (s.dtype, s.shape[1:]) for s in package.spec.outputs} == case.outputs
    assert case.norms is None or norms_in(package) == case.norms
    if not case.file:
        check_read_as_by_torch(package)
    check_served(device, package, case, by_onnxruntime(file, case) if case.file else by_the_module(module, case))
    return None


def _check_refusal(case: Case, error: PackageError, repository: Path) -> None:
    assert error.code == case.code, str(error)
    assert all("\n" not in fault and len(fault) < FAULT_MAX for fault in error.faults)
    assert "onnxruntime_src" not in str(error), "nobody here has its source"
    assert not repository.exists() or list(repository.iterdir()) == []


def _made(case: Case, file: Path) -> Any:
    torch.manual_seed(0)
    with torch.set_grad_enabled(True):  # as where modules are made, whatever a device has set
        return case.make(file) if case.file else case.make()


def _state(module: Any) -> dict[str, object]:
    """Returns the state of a module, for comparison."""
    if not isinstance(module, nn.Module):
        return {}
    tensors: dict[str, object] = {
        name: (id(tensor), None if tensor.is_meta or is_lazy(tensor) else mark(tensor)[1])
        for name, tensor in tensors_in(module).items()
    }
    return tensors | {"training": [part.training for part in module.modules()]}


def norms_in(package: Package) -> int:
    """Returns the number of batch normalisations that remain in the graph."""
    assert package.graph is not None
    with zipfile.ZipFile(package.graph) as archive:
        (text,) = [archive.read(name) for name in archive.namelist() if name.endswith("models/model.json")]
    return text.count(b'"target": "torch.ops.aten.batch_norm.default"')


def by_the_module(module: nn.Module, case: Case) -> Run:
    """Returns a function that runs the module itself, as people call it, output by output."""
    whole = module if isinstance(module, torch.fx.GraphModule) else _evaluated(module)

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        named = {name: tensor.clone() for name, tensor in zip(case.inputs, inputs, strict=True)}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nested tensors, in which torch keeps padded sequences
            first = [named.pop(name) for name in case.by_place]
            value = whole(*first, **named) if case.by_name else whole(*named.values())
        return [_as_served(_picked(value, name), len(inputs[0])) for name in case.where or case.outputs]

    return run


def _evaluated(module: nn.Module) -> nn.Module:
    """Returns the module in evaluation mode, as people set it; by the flag where eval() does something else."""
    try:
        return module.eval()
    except NotTheSwitch:
        for part in module.modules():
            part.training = False
        return module


def _picked(value: Any, name: str) -> torch.Tensor:
    """Returns what is at that path, as `a.0.b`, or the only value."""
    for step in name.split(".") if name != "output" else ():
        if isinstance(value, Mapping):
            value = value[step] if step in value else value[int(step)]
        else:
            value = value[int(step)] if step.isdigit() else getattr(value, step)
    return torch.as_tensor(value)


def _as_served(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Returns the output as it is served: a number per batch is repeated for each row, and bfloat16 becomes float32."""
    whole = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return whole.expand(rows) if whole.ndim == 0 else whole


def by_onnxruntime(file: Path, case: Case) -> Run:
    """Returns a function that runs the file itself with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        named = {name: tensor.numpy() for name, tensor in zip(case.inputs, inputs, strict=True)}
        found = session.run(list(case.outputs), named)
        return [_as_served(torch.from_numpy(array), len(inputs[0])) for array in found]

    return run
