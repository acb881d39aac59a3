"""What scripts/bench_gpu.py needs beside torch and numpy: one list, to fetch it and to say what of it is missing."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = "3.12"  # of the machine with the GPU, if nothing else is said
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)), "manylinux2014_x86_64"]  # exactly


@dataclass(frozen=True, slots=True)
class Need:
    """A package that some step imports."""

    name: str  # as it is installed
    module: str  # as it is imported
    gives: str = ""  # all that is not there without it; empty: nothing runs without it


NEEDS = (
    # the tests, and what they read settings and packages with
    Need("pytest", "pytest"), Need("iniconfig", "iniconfig"), Need("packaging", "packaging"), Need("pluggy", "pluggy"),
    Need("pygments", "pygments"), Need("hypothesis", "hypothesis"), Need("sortedcontainers", "sortedcontainers"),
    Need("msgspec", "msgspec"), Need("safetensors", "safetensors"), Need("uvloop", "uvloop"), Need("xxhash", "xxhash"),
    Need("pydantic", "pydantic"), Need("pydantic-core", "pydantic_core"), Need("annotated-types", "annotated_types"),
    Need("typing-inspection", "typing_inspection"), Need("typing-extensions", "typing_extensions"),
    # the worker and its bench
    Need("structlog", "structlog"), Need("pyzmq", "zmq"), Need("rich", "rich"), Need("markdown-it-py", "markdown_it"),
    Need("mdurl", "mdurl"), Need("pytorchcv", "pytorchcv"),
    Need("nvidia-ml-py", "pynvml", gives="the GPU's clock, and the driver's version in the device's kind"),
)  # fmt: skip


def missing(needs: Sequence[Need] = NEEDS) -> list[Need]:
    """Those that this interpreter does not find, in the list's order."""
    return [need for need in needs if importlib.util.find_spec(need.module) is None]


def complaint(lacking: Sequence[Need]) -> str:
    """What to say of needs that are missing, line by line: what each costs, and how to bring them."""
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
    """The command that fetches all of them for that Python on Linux (x86-64), in the versions that are installed here:
    those that the tests have passed with, and that fit each other.
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
    """The wheels are in the folder. Returns the exit code of what fetches them."""
    folder.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(download(folder, python), check=False).returncode
    if code == 0:
        wheels = sorted(folder.glob("*.whl"))
        print(f"{folder}: {len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB")
    return code
