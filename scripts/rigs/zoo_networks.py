"""Published networks, one of each family of pytorchcv: how each is made, imported, and compared. For scripts/zoo.

`python -m scripts.rigs.zoo_networks NAME FOLDER` imports one, in a process of its own so that its memory can be
measured.
"""

import importlib
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from gpu_worker.packages.comparing import difference, last_bits
from gpu_worker.packages.export import write_package
from gpu_worker.packages.importing.signature import tensors_of
from mesh.errors import PackageError

PARAMETERS_MAX = 60_000_000
BATCH_MAX = 4
SIZES = (1, 2, 3, 4)  # batch sizes that are compared
SLO_MS = 120_000.0
SEED = 5
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OF_POINTS = ("cityscapes", "voc", "coco", "ade20k", "celebamaskhq", "widerface", "prnet")  # not classifiers of images
RESULT, ROWS, EXPECTED = "result.json", "rows.safetensors", "expected-{}.safetensors"


@dataclass(frozen=True, slots=True)
class Network:
    """The smallest network of a family."""

    family: str
    name: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of importing a network."""

    name: str
    code: str  # imported, or the code of the refusal
    told: str  # the message of the refusal
    seconds: float
    megabytes: float  # peak memory of the process, with torch and the network itself
    noise: float  # change of the answers if the last bits of the inputs change, relative to a row's largest value
    norms: int  # of the network; folded ones are not in the graph
    norms_left: int


def _models() -> dict[str, Callable[..., Any]]:
    np.int = int  # type: ignore[attr-defined] # as numpy had it when these networks were written
    found: dict[str, Callable[..., Any]] = importlib.import_module("pytorchcv.model_provider")._models
    return found


def networks() -> tuple[list[Network], list[str]]:
    """(the smallest image classifier of each family, why other families are left out)."""
    families: dict[str, list[Network]] = defaultdict(list)
    faults = {}  # {family: why none of its networks can be made}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in sorted(_models().items()):
            family = make.__module__.rpartition(".")[2]
            if name.endswith(OF_POINTS):
                continue
            try:
                module = _without_memory(make)
            except Exception as error:  # any exception of pytorchcv
                faults[family] = f"{family}: {name} cannot be made ({type(error).__name__}: {error})".split("\n")[0]
                continue
            size = getattr(module, "in_size", None)
            if size and size[0] == size[1] and getattr(module, "num_classes", None):
                families[family].append(Network(family, name, sum(p.numel() for p in module.parameters())))
    smallest = [min(members, key=lambda network: network.parameters) for members in families.values()]
    left_out = [fault for family, fault in faults.items() if family not in families] + [
        f"{n.family}: its smallest, {n.name}, has {n.parameters / 1e6:.0f} million parameters"
        for n in smallest
        if n.parameters > PARAMETERS_MAX
    ]
    return [network for network in smallest if network.parameters <= PARAMETERS_MAX], left_out


def _without_memory(make: Callable[..., Any]) -> Any:
    """The network without memory for its values, or with it if that is not possible."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):
        return make()


def made(name: str) -> nn.Module:
    """The network with random weights, and norms that have seen data, so that none of their values is 0 or 1."""
    torch.manual_seed(SEED)
    module: nn.Module = _models()[name]().eval()
    norms = [part for part in module.modules() if isinstance(part, NORMS) and part.running_mean is not None]
    for norm in norms:
        norm.train()
        norm.momentum = None  # mean over all data seen
    with torch.no_grad():
        module(rows(module, 4))
        for norm in norms:
            norm.eval()
            assert norm.running_var is not None
            assert norm.running_mean is not None
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
            if norm.affine:
                norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.8, 1.25))
                norm.bias.add_(0.1 * torch.randn_like(norm.bias))
    return module


def rows(module: Any, count: int) -> torch.Tensor:
    """So many images of noise."""
    return torch.randn(count, 3, *module.in_size, generator=torch.Generator().manual_seed(SEED))


def import_one(name: str, folder: Path) -> Imported:
    """Writes the package to `folder`/repository, and beside it rows and the network's own answers to them."""
    module = made(name)
    norms = sum(isinstance(part, NORMS) for part in module.modules())
    size = tuple(module.in_size)  # type: ignore[arg-type]
    began_s = time.monotonic()
    code, told, noise, left = "imported", "", 0.0, 0
    try:
        package = write_package(
            folder / "repository", name, "1", module, inputs={"x": ("float32", (3, *size))}, batch_max=BATCH_MAX,
            slo_ms=SLO_MS,
        )  # fmt: skip
    except PackageError as error:
        code, told = error.code, error.faults[0]
    seconds = time.monotonic() - began_s
    megabytes = _peak_megabytes()
    if code == "imported":
        assert package.graph is not None
        graph = torch.export.load(package.graph).graph
        left = sum(node.target is torch.ops.aten.batch_norm.default for node in graph.nodes)
        for batch, outputs in _answers(module, rows(module, BATCH_MAX)):
            names = [spec.name for spec in package.spec.outputs]
            tensors = {n: output.contiguous() for n, output in zip(names, outputs, strict=True)}
            save_file(tensors, folder / EXPECTED.format(batch))
        noise = _noise(module, rows(module, BATCH_MAX))
        save_file({"x": rows(module, BATCH_MAX)}, folder / ROWS)
    return Imported(name, code, told, seconds, megabytes, noise, norms, left)


def _noise(module: nn.Module, x: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        pairs = zip(tensors_of(module(x), len(x)), tensors_of(module(last_bits(x, generator)), len(x)), strict=True)
        return max(difference(one, other) for one, other in pairs)


def _peak_megabytes() -> float:
    """Peak memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _answers(module: nn.Module, x: torch.Tensor) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """(batch size, the network's own answers to the first rows)."""
    for batch in SIZES:
        with torch.no_grad():
            yield batch, [output.clone() for output in tensors_of(module(x[:batch].clone()), batch)]


def main() -> int:
    """Imports the network and writes the result to the folder."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, folder = sys.argv[1], Path(sys.argv[2])
    (folder / RESULT).write_text(json.dumps(asdict(import_one(name, folder))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
