"""Builds the demo model repository: digits classifiers trained here in seconds, a text encoder, and convolutional
networks.

.venv/bin/python scripts/build_models.py [--repository FOLDER] [--only NAME ...] [--force] [--copies N [--alias]]

An existing version is never overwritten: with --force, a model that differs from its newest version becomes its next
version.

With --copies, each of the models gets N copies of the same architecture, NAME-0001 and so on, which share executables
and figures. They have weights of their own; or, if memory or disk are too small or with --alias, they are links to one
file. Each copy is a model in its own right, with pages of its own on a device.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.configuration import read_settings
from mesh.process.repository import versions_in
from scripts.peers import encoder
from scripts.rigs.model_copies import make_copies, why_alias

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
SEED = 7
COPIES_MAX = 9999
PIXELS = {"image": ("float32", (64,))}
DEMO_LAYERS = 2  # of the text encoder: it is measured at many lengths before it is served
PHOTO = {"x": ("float32", (3, 224, 224))}


class Scaled(nn.Module):
    """A classifier of raw pixel values, 0 to 16."""

    def __init__(self, body: nn.Module, square: bool = False) -> None:
        super().__init__()
        self.body = body
        self.square = square

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, 64] float32 -> [batch, 10] scores."""
        scaled = image / 16.0 - 0.5
        scores: torch.Tensor = self.body(scaled.reshape(-1, 1, 8, 8) if self.square else scaled)
        return scores


def linear() -> nn.Module:
    """Multinomial logistic regression."""
    return Scaled(nn.Linear(64, 10))


def mlp() -> nn.Module:
    """A perceptron with two hidden layers."""
    return Scaled(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)))


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip
    return Scaled(body, square=True)


def digits() -> tuple[Floats, Floats, Labels, Labels]:
    """Images (train, test) and labels (train, test) of scikit-learn's digits, in the split that tests rely on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images.astype(np.float32), labels, test_size=0.25, random_state=SEED, stratify=labels)
    return split[0], split[1], split[2], split[3]


def train(module: nn.Module, epochs: int) -> float:
    """Trains the module. Returns its accuracy on the test split."""
    images, test_images, labels, test_labels = (torch.from_numpy(part) for part in digits())
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-3)
    loss = nn.CrossEntropyLoss()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            loss(module(images[batch]), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        return float((module.eval()(test_images).argmax(1) == test_labels).float().mean())


def build_digits(repository: Path, name: str, make: Callable[[], nn.Module], epochs: int) -> str:
    """Writes the package. Returns a line about it."""
    torch.manual_seed(SEED)
    module = make()
    accuracy = train(module, epochs)
    package = put(
        repository, name, module, inputs=PIXELS, outputs=["scores"], batch_max=64, slo_ms=100.0,
        labels=[str(digit) for digit in range(10)], description=f"digits, accuracy {accuracy:.3f} on the test split",
    )  # fmt: skip
    return f"version {package.folder.name}, accuracy {accuracy:.1%} on the test split"


def put(repository: Path, name: str, module: nn.Module, **options: Any) -> Package:
    """The package of the module: the newest version if that has the same content, else a new next version."""
    folder = repository / name
    newest = max(map(int, versions_in(folder) if folder.is_dir() else ()), default=1)
    try:
        return write_package(repository, name, str(newest), module, **options)
    except PackageError as error:
        if error.code != PackageCode.VERSION_EXISTS:
            raise
    return write_package(repository, name, str(newest + 1), module, **options)


def build_resnet(repository: Path, name: str) -> str:
    """Writes the package with random weights. Returns a line about it."""
    torch.manual_seed(SEED)
    module = _resnet(name).eval()
    package = put(
        repository, name, module, inputs=PHOTO, outputs=["scores"], batch_max=8, slo_ms=5000.0,
        labels=[f"class {i}" for i in range(1000)], description="random weights: real compute, no meaning",
    )  # fmt: skip
    return f"version {package.folder.name}, {package.image_bytes / 1e6:.0f} MB of weights (random)"


def _resnet(name: str) -> nn.Module:
    """The network, from whichever of the two model libraries is installed. Raises: ImportError."""
    try:
        from pytorchcv.models import resnet
    except ImportError:
        from torchvision.models import get_model  # installed on most machines with a GPU

        made: nn.Module = get_model(name, weights=None)
        return made
    module: nn.Module = getattr(resnet, name)()
    return module


class Noop(nn.Module):
    """Returns its input: what remains is the cost of the mesh."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, n] -> [batch, n]."""
        return x.clone()


def build_noop(repository: Path, name: str, floats: int = 16) -> str:
    """Writes the package of a model that gives back its `floats` numbers. Returns a line about it."""
    package = put(
        repository, name, Noop(), inputs={"x": ("float32", (floats,))}, outputs=["y"], batch_max=64, slo_ms=1000.0,
        cache=False, description="gives back what it gets",
    )  # fmt: skip
    return f"version {package.folder.name}, {floats} floats in, {floats} floats out"


def build_encoder(repository: Path, name: str) -> str:
    """Writes the package of a text encoder that takes texts of any length. Returns a line about it."""
    words = ("int64", ("words",)), ("bool", ("words",))
    package = put(
        repository, name, encoder.build(DEMO_LAYERS), inputs={"ids": words[0], "mask": words[1]}, outputs=["vector"],
        dims={"words": (1, encoder.LONGEST)}, batch_max=16, slo_ms=1000.0,
        description="random weights: texts that share words are alike",
    )  # fmt: skip
    return f"version {package.folder.name}, texts of 1 to {encoder.LONGEST} words"


BUILDERS: dict[str, Callable[[Path, str], str]] = {
    "digits_linear": lambda repository, name: build_digits(repository, name, linear, 60),
    "digits_mlp": lambda repository, name: build_digits(repository, name, mlp, 40),
    "digits_cnn": lambda repository, name: build_digits(repository, name, cnn, 20),
    "text_encoder": build_encoder,
    "resnet18": build_resnet,
    "resnet50": build_resnet,
    "noop": build_noop,
}
DEMO = [name for name in BUILDERS if name != "noop"]


def build_copies(repository: Path, name: str, count: int, alias: bool) -> None:
    """Makes the copies and prints how they were made."""
    package = read_package(repository, f"{name}:1", ())
    why = "as asked" if alias else why_alias(package, repository, count)
    began_s = time.monotonic()
    made = list(make_copies(package, repository, count, alias=bool(why), seed=SEED))
    how = f"links to one file ({why})" if why else "weights of their own"
    print(f"{made[0]} to {made[-1]}: {how}  ({time.monotonic() - began_s:.1f} s)")


def main() -> int:
    """Builds the chosen models that do not exist yet. Exit code 0, or 2 for a wrong name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=read_settings().model_repository)
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS), default=DEMO)
    parser.add_argument("--force", action="store_true", help="build what is there already, too, as its next version")
    parser.add_argument("--copies", type=int, default=0, metavar="N", help="models of the same architecture to add")
    parser.add_argument("--alias", action="store_true", help="copies are links to one file of weights")
    arguments = parser.parse_args()
    if not 0 <= arguments.copies <= COPIES_MAX:
        parser.error(f"--copies {arguments.copies}: give 0 to {COPIES_MAX}")
    if arguments.alias and not arguments.copies:
        parser.error("--alias: says how copies are made; give --copies N as well")
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    for name in arguments.only:
        if (arguments.repository / name / "1" / "weights.safetensors").exists() and not arguments.force:
            print(f"{name:<14} is there")
        else:
            began_s = time.monotonic()
            told = BUILDERS[name](arguments.repository, name)
            print(f"{name:<14} {told}  ({time.monotonic() - began_s:.1f} s)")
        sys.stdout.flush()
        if arguments.copies:
            build_copies(arguments.repository, name, arguments.copies, arguments.alias)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
