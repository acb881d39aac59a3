"""Writes a torch module as a model package: the graph without its weights, and the weights beside it."""

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval

from broker import wire
from gpu_worker.importing.writing import manifest_text, staged
from gpu_worker.packages import MANIFEST, Package, read_package


class _Lifted(nn.Module):
    """The module as a function of its weights: (weights..., inputs...) -> outputs, all flat."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["_module_and_names"] = (module, tuple(names))  # out of nn.Module's sight: nothing to lift twice

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        module, names = self.__dict__["_module_and_names"]
        weights = dict(zip(names, flat, strict=False))
        outputs = functional_call(module, weights, tuple(flat[len(names) :]), tie_weights=False)
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def write_package(
    repository: Path,
    name: str,
    version: str,
    module: nn.Module,
    *,
    inputs: Mapping[str, tuple[str, tuple[int, ...]]],
    outputs: Sequence[str],
    batch_max: int = 32,
    slo_ms: float = 1000.0,
    labels: Sequence[str] = (),
    cache: bool = True,
    description: str = "",
) -> Package:
    """The package is on disk, whole or not at all, and has been read back.

    `inputs`: {name: (dtype, shape of one row)}, in the order that the module takes them. Batch normalisation right
    behind a convolution is folded into it; the outputs' dtypes and shapes are found by running the module.
    Raises: PackageError, ValueError for outputs that are not all named, or what torch.export raises for a module that
    it cannot export.
    """
    module = _folded(copy.deepcopy(module).eval())
    example = tuple(_example(dtype, (2, *shape)) for dtype, shape in inputs.values())
    with torch.no_grad():
        result = module(*example)
    results = result if isinstance(result, (tuple, list)) else (result,)
    specs = {
        output: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:]))
        for output, tensor in zip(outputs, results, strict=True)
    }
    manifest = manifest_text(inputs, specs, batch_max, slo_ms, labels, cache, description, "graph.pt2")
    weights = {key: tensor.detach().contiguous().clone() for key, tensor in module.state_dict().items()}
    with staged(repository, name, version) as folder:
        constants = _write_graph(module, weights, example, batch_max, folder / "graph.pt2")
        save_file(constants | weights, folder / "weights.safetensors")
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


def _folded(module: nn.Module) -> nn.Module:
    """Conv2d followed by BatchNorm2d, where one child directly follows the other in a container, become one Conv2d."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (first, conv), (second, norm) in itertools.pairwise(children):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and conv.out_channels == norm.num_features
            ):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())
    return module


def _example(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    kind = getattr(torch, dtype)
    return torch.randn(shape).to(kind) if kind.is_floating_point else torch.zeros(shape, dtype=kind)


def _write_graph(
    module: nn.Module,
    weights: Mapping[str, torch.Tensor],
    example: tuple[torch.Tensor, ...],
    batch_max: int,
    file: Path,
) -> dict[str, torch.Tensor]:
    """The graph is in the file. Returns the tensors that the module makes of constants as it runs: the graph takes them
    before its weights, and they are stored and paged like weights.
    """
    batch = torch.export.Dim("batch", min=1, max=max(2, batch_max))
    shapes = (*(None for _ in weights), *({0: batch} for _ in example))
    arguments = (*weights.values(), *example)  # copies: tied weights, too, are tensors of their own in a package
    exported = torch.export.export(_Lifted(module, list(weights)), arguments, dynamic_shapes=(shapes,))
    exported._example_inputs = None  # the weights once more: tens of megabytes that nobody reads
    constants = {
        str(taken.target): exported.constants[str(taken.target)].contiguous()
        for taken in exported.graph_signature.input_specs
        if taken.kind is InputKind.CONSTANT_TENSOR
    }
    order = {"weights": [*constants, *weights]}
    torch.export.save(exported, file, extra_files={"gearmesh.json": json.dumps(order)})
    return constants
