"""Makes many models of one architecture from one package: with weights of their own, or as links to one file."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from gpu_worker.devices.images import available_bytes
from gpu_worker.packages.package import Package
from gpu_worker.packages.writing import staged

NOISE = 0.01  # share of a tensor's spread: changes the outputs, but not their kind
SHARE_OF_MEMORY = 0.25  # largest share of the available memory for copies with weights of their own
SHARE_OF_DISK = 0.5


def copy_name(name: str, number: int) -> str:
    """The copy's name: NAME-0001, NAME-0002, ..."""
    return f"{name}-{number:04d}"


def make_copies(package: Package, repository: Path, count: int, *, alias: bool, seed: int) -> Iterator[str]:
    """Yields the names of the copies as they are made; existing copies stay unchanged."""
    name = package.folder.parent.name
    for number in range(1, count + 1):
        copy = copy_name(name, number)
        if not (repository / copy / package.folder.name).exists():
            _make_copy(package, repository, copy, None if alias else np.random.default_rng((seed, number)))
        yield copy


def why_alias(package: Package, repository: Path, count: int) -> str:
    """Why copies with weights of their own would not fit on this machine; "" if they would."""
    needed = count * package.weights_file.stat().st_size
    for what, limit in (
        ("memory", SHARE_OF_MEMORY * available_bytes()),
        ("disk", SHARE_OF_DISK * shutil.disk_usage(repository).free),
    ):
        if needed > limit:
            return f"{needed / 1e9:.1f} GB of weights; {limit / 1e9:.1f} GB of {what} may go to copies"
    return ""


def _make_copy(package: Package, repository: Path, copy: str, rng: np.random.Generator | None) -> None:
    version = package.folder.name
    with staged(repository, copy, version) as folder:
        shutil.copy(package.manifest, folder)
        if package.example_file is not None:
            _link(package.example_file, folder)
        if package.graph is not None:
            _link(package.graph, folder)
        if rng is None:
            _link(package.weights_file, folder)
        else:
            save_file(_perturbed(load_file(package.weights_file), rng), folder / "weights.safetensors")


def _perturbed(weights: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    for tensor in weights.values():
        if tensor.dtype == np.float32 and tensor.size:
            tensor += NOISE * tensor.std() * rng.standard_normal(tensor.shape, np.float32)
    return weights


def _link(file: Path, folder: Path) -> None:
    """Links the file into the folder, without using space if the file system allows it."""
    try:
        os.link(file, folder / file.name)
    except OSError:
        shutil.copy(file, folder)
