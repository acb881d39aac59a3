"""The packages that scripts/bench_gpu.py needs besides torch and numpy: downloads them, and reports missing ones."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = "3.12"  # of the machine with the GPU; the default
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)), "manylinux2014_x86_64"]  # exactly


@dataclass(frozen=True, slots=True)
class Need:
    """A package that some step imports."""

    name: str  # its name for pip
    module: str  # its name in Python
    gives: str = ""  # what is missing without it; empty: nothing runs without it


NEEDS = (
    # the tests, and what pytest itself needs
    Need("pytest", "pytest"), Need("iniconfig", "iniconfig"), Need("packaging", "packaging"), Need("pluggy", "pluggy"),
    Need("pygments", "pygments"), Need("hypothesis", "hypothesis"), Need("sortedcontainers", "sortedcontainers"),
    Need("msgspec", "msgspec"), Need("safetensors", "safetensors"), Need("uvloop", "uvloop"), Need("xxhash", "xxhash"),
    Need("pydantic", "pydantic"), Need("pydantic-core", "pydantic_core"), Need("annotated-types", "annotated_types"),
    Need("typing-inspection", "typing_inspection"), Need("typing-extensions", "typing_extensions"),
    # the worker and its benchmark
    Need("structlog", "structlog"), Need("pyzmq", "zmq"), Need("rich", "rich"), Need("markdown-it-py", "markdown_it"),
    Need("mdurl", "mdurl"), Need("pytorchcv", "pytorchcv"),
    Need("nvidia-ml-py", "pynvml", gives="the GPU's clock, and the driver's version in the device's kind"),
)  # fmt: skip


def missing(needs: Sequence[Need] = NEEDS) -> list[Need]:
    """The packages that this interpreter does not find, in the list's order."""
    return [need for need in needs if importlib.util.find_spec(need.module) is None]


def complaint(lacking: Sequence[Need]) -> str:
    """A message about missing packages, one line each: what is not possible without it, and how to install it."""
    without = [need.name for need in lacking if not need.gives]
    lines = [f"missing, and needed: {', '.join(without)}"] if without else []
    lines += [f"missing: {need.name}; not there without it: {need.gives}" for need in lacking if need.gives]
    if without:
        lines += [
            "Where a registry can be reached:  python3 -m scripts.bench_gpu wheels FOLDER",
            "Here:  python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl; export PYTHONPATH=SITE",
        ]
    return "".join(f"{line}\n" for line in lines)


def download(folder: Path, python: str = PYTHON, needs: Sequence[Need] = NEEDS) -> list[str]:
    """The command that downloads all of them for that Python on Linux (x86-64).

    The versions are those installed here, with which the tests have passed and which fit each other.
    """
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder),
        "--implementation", "cp", "--python-version", python, *platforms, *map(_pinned, needs),
    ]  # fmt: skip


def _pinned(need: Need) -> str:
    try:
        return f"{need.name}=={importlib.metadata.version(need.name)}"
    except importlib.metadata.PackageNotFoundError:
        return need.name


def fetch(folder: Path, python: str = PYTHON) -> int:
    """Downloads the wheels into the folder. Returns the exit code of pip."""
    folder.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(download(folder, python), check=False).returncode
    if code == 0:
        wheels = sorted(folder.glob("*.whl"))
        print(f"{folder}: {len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB")
    return code
