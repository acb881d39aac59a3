"""Makes architectures executable with torch, and reads weight images into memory."""

import importlib
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch.func import functional_call

from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.execution.building import Declared, build, declared_of
from gpu_worker.devices.execution.moving import move, reshape_views
from gpu_worker.devices.execution.onnx import load_onnx
from gpu_worker.devices.execution.passed import PassedChecks, Tried
from gpu_worker.devices.execution.rows import example_rows, inputs_for, padding_rows
from gpu_worker.packages import trials
from gpu_worker.packages.comparing import Run, tolerance
from gpu_worker.packages.contents import digests_of
from gpu_worker.packages.examples import KeptRows, message_of
from gpu_worker.packages.package import Package
from gpu_worker.packages.reading import graphs
from gpu_worker.packages.reading.archives import UnsafeArchive
from gpu_worker.packages.reading.files import fill, open_plain
from gpu_worker.packages.reading.graphs import UnsafeProgram
from gpu_worker.packages.reading.serialized import TooLarge
from gpu_worker.packages.reading.tensors import BadHeader
from gpu_worker.packages.sizing import Sizing, sizing_of
from gpu_worker.packages.stored import ONNX, Weight, places
from mesh.codes import PackageCode
from mesh.errors import PackageError

Forward = Callable[..., Sequence[torch.Tensor]]
PASSED_MAX = 100_000
NOT_KNOWN: Set[torch.dtype] = frozenset()
CPU = torch.device("cpu")

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


def read_image(package: Package, image: Bytes) -> None:
    """`image` holds the package's weights at the offsets of its layout. Raises: PackageError."""
    whole = memoryview(image)  # type: ignore[arg-type]
    try:
        with open_plain(package.weights_file) as opened:
            for offset, start, size in places(opened, package.layout):
                fill(opened.fileno(), whole[offset : offset + size], start)
    except (OSError, BadHeader) as error:
        raise PackageError(package.ref, [f"{package.weights_file.name}: {error}"]) from error


def view(flat: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Returns a view of one tensor of a flat image (uint8); a new empty tensor if it has no values."""
    if not weight.size:
        return torch.empty(weight.shape, dtype=TORCH_DTYPES[weight.dtype], device=flat.device)
    piece = flat[weight.offset : weight.offset + weight.size]
    return piece.view(TORCH_DTYPES[weight.dtype]).view(weight.shape)


def views(image: Bytes, package: Package) -> list[torch.Tensor]:
    """Returns views of all tensors of a flat image, in the order in which the architecture takes them."""
    flat = torch.from_numpy(image)
    return [view(flat, weight) for weight in package.layout]


def load_forward(package: Package, place: torch.device = CPU) -> Forward:
    """Returns (weights..., inputs...) -> outputs of the package's architecture for the device. Raises: PackageError."""
    if package.graph is None:
        return _from_factory(package)
    if package.graph.suffix == ONNX:
        return load_onnx(package)
    module = _built(package, package.graph)
    _check_placeholders(package, module)
    if place != CPU:
        move(module, place)
        reshape_views(module)
    forward: Forward = module.forward
    return forward


def _built(package: Package, graph: Path) -> torch.fx.GraphModule:
    """Returns the package's graph. Raises: PackageError."""
    try:
        return build(graphs.read(graph))
    except (UnsafeArchive, UnsafeProgram, TooLarge) as error:
        raise PackageError(package.ref, [f"{graph.name}: {error}"], PackageCode.UNSAFE_PACKAGE) from error
    except (OSError, ValueError) as error:
        raise PackageError(package.ref, [f"{graph.name}: {error}"]) from error


def _check_placeholders(package: Package, module: torch.fx.GraphModule) -> None:
    taken = [declared_of(node) for node in module.graph.find_nodes(op="placeholder")]
    wanted = len(package.layout) + len(package.spec.inputs)
    faults = []
    if len(taken) != wanted:
        faults.append(
            f"the graph takes {len(taken)} tensors; weights.safetensors and model.toml together have {wanted}"
        )
    for value, weight in zip(taken, package.layout, strict=False):
        if value != (TORCH_DTYPES[weight.dtype], weight.shape):
            faults.append(
                f"{weight.name}: the graph takes {value}, weights.safetensors has "
                f"{TORCH_DTYPES[weight.dtype]} {list(weight.shape)}"
            )
    for value, spec in zip(taken[len(package.layout) :], package.spec.inputs, strict=False):
        row = tuple(None if extent == -1 else extent for extent in spec.shape[1:])
        if value is None or str(value.dtype) != f"torch.{spec.dtype}" or value.shape[1:] != row:
            faults.append(
                f"input {spec.name}: the graph takes {value}, model.toml says {spec.dtype} {list(spec.shape)}"
            )
    if faults:
        raise PackageError(package.ref, faults[:20])


def _from_factory(package: Package) -> Forward:
    module_name, _, attribute = package.factory.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module_name), attribute)
        library = str(getattr(factory, "__module__", "")).partition(".")[0]
        if library != module_name.partition(".")[0]:
            why = f"factory {package.factory}: {module_name} only imports it, from {library or 'nowhere'}"
            raise PackageError(package.ref, [why], PackageCode.UNSAFE_PACKAGE)
        with torch.device("meta"):
            module = factory(**package.factory_args)
        if not isinstance(module, torch.nn.Module):
            why = f"factory {package.factory} makes a {type(module).__name__}, which is no torch.nn.Module"
            raise PackageError(package.ref, [why])
        module.eval()
    except PackageError:
        raise
    except Exception as error:  # the author's code may raise anything
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


@dataclass(slots=True)
class Checks:
    """Which versions this process has checked, by everything that the outcome depends on.

    Only PREPARE's thread uses it. `kept`: those that were checked here before count, too.

    All versions of an architecture share an executable, but they may behave differently: other weights may take a path
    in the graph that mixes rows, and so may a larger batch.
    """

    kept: PassedChecks | None = None
    # {(content, batch_max, example): None}, oldest first
    _passed: dict[Tried, None] = field(default_factory=dict)

    def are_needed(self, package: Package) -> bool:
        """Returns whether no equal version has passed the checks."""
        tried = _tried_as(package)
        return tried not in self._passed and (self.kept is None or not self.kept.has(package, tried))

    def passed(self, package: Package) -> None:
        """The version has passed the checks."""
        if len(self._passed) >= PASSED_MAX:
            del self._passed[next(iter(self._passed))]
        tried = _tried_as(package)
        if self.kept is not None and tried not in self._passed:
            self.kept.keep(package, tried)
        self._passed[tried] = None


def _tried_as(package: Package) -> Tried:
    digests = digests_of(package)
    return digests.content, package.spec.batch_max, digests.example


def check_by_running(
    package: Package,
    forward: Forward,
    weights: Sequence[torch.Tensor],
    place: torch.device = CPU,
    dtypes: Set[torch.dtype] = NOT_KNOWN,
) -> None:
    """The model keeps what model.toml promises, row by row (`packages.trials`), and leaves its weights unchanged.

    `dtypes`: of the computed values, if `forward` does not show them. Raises: PackageError; torch.OutOfMemoryError if
    the device has no room for it.
    """

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode():
            outputs = forward(*weights, *(tensor.to(place) for tensor in inputs))
            return [output.to(CPU) for output in outputs]

    written, before = [tensor._version for tensor in weights], _digest(weights)
    fault: PackageError | None = None
    try:
        _check(package, {*dtypes, *dtypes_of(forward), *(weight.dtype for weight in weights)}, run, place)
    except torch.OutOfMemoryError:
        raise  # the device's fault, not the graph's
    except PackageError as error:
        fault = error
    except Exception as error:  # the author's graph may raise anything
        why = f"the model fails on inputs of its kind: {message_of(error)}"
        raise PackageError(package.ref, [why], PackageCode.FORWARD_FAILED) from error
    if written != [tensor._version for tensor in weights] or before != _digest(weights):
        why = "running the model changes its weights or buffers: an answer would depend on what was asked before"
        raise PackageError(package.ref, [why], PackageCode.STATE_CHANGED)
    if fault is not None:
        raise fault


def warm_up(package: Package, forward: Forward, weights: Sequence[torch.Tensor]) -> None:
    """The executable of a version that has passed the checks has run once, so that no request waits for what that
    takes.
    """
    with torch.inference_mode():
        forward(*weights, *_padding(package, sizing_of(package.spec)))


def _padding(package: Package, sizing: Sizing) -> list[torch.Tensor]:
    """Returns one row of padding, `[1, ...]`, of each input; with open dimensions, of their least extents."""
    if sizing.dims:
        rows = example_rows(package)
        return KeptRows(tuple(rows), sizing).filling() if rows is not None else sizing.zeros(1, sizing.least)
    pads = zip(padding_rows(package), package.spec.inputs, strict=True)
    return [torch.from_numpy(row).view(getattr(torch, s.dtype)).view(1, *s.shape[1:]) for row, s in pads]


def _check(package: Package, dtypes: Set[torch.dtype], run: Run, place: torch.device) -> None:
    draw = inputs_for(package, run, place)
    sizing = sizing_of(package.spec)
    trial = trials.Trial(draw, package.spec.batch_max, _padding(package, sizing), sizing=sizing)
    close = tolerance(dtypes, place)
    trials.check(package.ref, package.spec.outputs, run, trial, close)


def _digest(weights: Sequence[torch.Tensor]) -> str:
    """Returns a digest of the weights' bytes, as far as they are in host memory."""
    digest = xxhash.xxh3_64()
    for tensor in weights:
        if tensor.device == CPU:
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def dtypes_of(forward: Forward) -> set[torch.dtype]:
    """Returns the dtypes of everything that an executable computes; empty if it does not show them."""
    graph = getattr(forward, "__self__", None)
    if not isinstance(graph, torch.fx.GraphModule):
        return set()
    parts = [module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    values = [node.meta.get("val") for part in parts for node in part.graph.nodes]
    return {value.dtype for value in values if isinstance(value, (torch.Tensor, Declared))}
