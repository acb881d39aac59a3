"""Architectures made executable with torch on the cpu, and weight images read into memory."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch.export.passes import move_to_device_pass
from torch.func import functional_call

from broker import wire
from broker.errors import PackageError
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.moving import reshape_views
from gpu_worker.devices.onnx import load_onnx
from gpu_worker.packages import ONNX, Package, Weight

Forward = Callable[..., Sequence[torch.Tensor]]
CPU = torch.device("cpu")

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_image(package: Package, image: Bytes) -> None:
    """The weights of the package are in `image`, at the offsets of its layout. Raises: PackageError."""
    flat = torch.from_numpy(image)
    try:
        with safe_open(package.weights_file, framework="pt") as stored:
            for weight in package.layout:
                view(flat, weight).copy_(stored.get_tensor(weight.name))
    except Exception as error:  # safetensors raises its own, torch RuntimeError: all mean that the file is not good
        raise PackageError(package.ref, [f"weights.safetensors: {error}"]) from error


def view(flat: torch.Tensor, weight: Weight) -> torch.Tensor:
    """One tensor of a flat image (uint8), not copied."""
    piece = flat[weight.offset : weight.offset + weight.size]
    return piece.view(TORCH_DTYPES[weight.dtype]).view(weight.shape)


def views(image: Bytes, package: Package) -> list[torch.Tensor]:
    """All tensors of a flat image, in the order the architecture takes them."""
    flat = torch.from_numpy(image)
    return [view(flat, weight) for weight in package.layout]


def load_forward(package: Package, place: torch.device = CPU) -> Forward:
    """(weights..., inputs...) -> outputs, of the package's architecture, for that device. Raises: PackageError."""
    if package.graph is None:
        return _from_factory(package)
    if package.graph.suffix == ONNX:
        return load_onnx(package)
    try:
        exported = torch.export.load(package.graph)
    except Exception as error:  # torch.export raises whatever it meets in a damaged archive
        raise PackageError(package.ref, [f"{package.graph.name}: torch.export cannot load it: {error}"]) from error
    _check_placeholders(package, exported)
    if place != CPU:
        exported = move_to_device_pass(exported, place)
        reshape_views(exported.graph_module)
    forward: Forward = exported.graph_module.forward
    return forward


def _check_placeholders(package: Package, exported: torch.export.ExportedProgram) -> None:
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    wanted = len(package.layout) + len(package.spec.inputs)
    faults = []
    if len(nodes) != wanted:
        faults.append(
            f"the graph takes {len(nodes)} tensors; weights.safetensors and model.toml together have {wanted}"
        )
    for node, weight in zip(nodes, package.layout, strict=False):
        value = node.meta["val"]
        if tuple(value.shape) != weight.shape or value.dtype != TORCH_DTYPES[weight.dtype]:
            faults.append(
                f"{weight.name}: the graph takes {value.dtype} {list(value.shape)}, weights.safetensors has "
                f"{TORCH_DTYPES[weight.dtype]} {list(weight.shape)}"
            )
    for node, spec in zip(nodes[len(package.layout) :], package.spec.inputs, strict=False):
        value = node.meta["val"]
        rest = tuple(value.shape)[1:]
        if rest != tuple(spec.shape[1:]) or str(value.dtype) != f"torch.{spec.dtype}":
            faults.append(
                f"input {spec.name}: the graph takes {value.dtype} [batch, {', '.join(map(str, rest))}], model.toml "
                f"says {spec.dtype} {list(spec.shape)}"
            )
    if faults:
        raise PackageError(package.ref, faults)


def _from_factory(package: Package) -> Forward:
    module_name, _, attribute = package.factory.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module_name), attribute)
        with torch.device("meta"):
            module = factory(**package.factory_args).eval()
    except Exception as error:  # it is the author's code
        raise PackageError(package.ref, [f"factory {package.factory}: {type(error).__name__}: {error}"]) from error
    names = [weight.name for weight in package.layout]
    _check_state(package, module)

    def forward(*flat: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = functional_call(module, dict(zip(names, flat, strict=False)), flat[len(names) :], tie_weights=False)
        return outputs if isinstance(outputs, (tuple, list)) else (outputs,)

    return forward


def _check_state(package: Package, module: torch.nn.Module) -> None:
    state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = {weight.name: weight.shape for weight in package.layout}
    faults = [f"weights.safetensors lacks {name}" for name in state if name not in stored]
    faults += [f"weights.safetensors has {name}, which the factory's module does not" for name in stored.keys() - state]
    faults += [
        f"{name}: the module takes {list(state[name])}, weights.safetensors has {list(shape)}"
        for name, shape in stored.items()
        if name in state and state[name] != shape
    ]
    if faults:
        raise PackageError(package.ref, faults[:20])


def check_by_running(
    package: Package, forward: Forward, weights: Sequence[torch.Tensor], place: torch.device = CPU
) -> None:
    """One row and two rows go through, and come out as model.toml promises. Raises: PackageError,
    torch.OutOfMemoryError where a device has no room for them.
    """
    for rows in (1, min(2, package.spec.batch_max)):
        inputs = [zeros(spec, rows).to(place) for spec in package.spec.inputs]
        try:
            with torch.inference_mode():
                outputs = forward(*weights, *inputs)
        except torch.OutOfMemoryError:
            raise  # the device's fault, not the graph's
        except Exception as error:  # it is the author's graph
            raise PackageError(package.ref, [f"the model fails on {rows} rows of zeros: {error}"]) from error
        faults = _compare(package.spec.outputs, outputs, rows)
        if faults:
            raise PackageError(package.ref, faults)


def zeros(spec: wire.TensorSpec, rows: int) -> torch.Tensor:
    """An input of that many rows."""
    return torch.zeros((rows, *spec.shape[1:]), dtype=getattr(torch, spec.dtype))


def _compare(specs: Sequence[wire.TensorSpec], outputs: Sequence[torch.Tensor], rows: int) -> list[str]:
    if len(outputs) != len(specs):
        return [f"the model gives {len(outputs)} outputs, model.toml says {len(specs)}"]
    return [
        f"output {spec.name}: the model gives {output.dtype} {list(output.shape)} for {rows} rows, model.toml says "
        f"{spec.dtype} {list(spec.shape)}"
        for spec, output in zip(specs, outputs, strict=True)
        if tuple(output.shape) != (rows, *spec.shape[1:]) or str(output.dtype) != f"torch.{spec.dtype}"
    ]
