"""The wheel, in environments of its own: the client where only three libraries are, the mesh in any folder."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from frontend.client.client import AsyncClient
from gearmesh.operations.ports import free_ports
from mesh.codes import ErrorCode
from scripts import ROOT
from scripts.rigs.house import PRODUCT
from scripts.rigs.meshes import emulated_device, emulated_model, until

pytestmark = pytest.mark.end_to_end

BARE = ("zmq", "pyzmq.libs", "msgpack", "numpy", "numpy.libs")  # all that the client needs, as it lies on the disk
LIBRARIES = Path(sysconfig.get_path("purelib"))
ASK = """
import json, sys
import numpy as np
from gearmesh import Client
with Client(sys.argv[1]) as client:
    prediction = client.infer("m", np.ones((1, 4), np.float32), slo_ms=40_000)
print(json.dumps([prediction.model, list(prediction.output.shape), sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is committed to, so that nothing is left behind in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PRODUCT:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


class Environment:
    """A virtual environment with the wheel in it, and the libraries that `paths` hold."""

    def __init__(self, folder: Path, wheel: Path, paths: list[Path]) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        subprocess.run(
            [sys.executable, "-m", "pip", "--quiet", "--python", self.bin / "python", "install", "--no-deps", wheel],
            check=True, capture_output=True,
        )  # fmt: skip
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text("".join(f"{path}\n" for path in paths))

    def run(self, program: str, *arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """The program of this environment, in that folder, with nothing of ours in its environment variables."""
        return subprocess.run(
            [self.bin / program, *arguments], cwd=cwd, env=plain() | more, capture_output=True, text=True, check=False
        )


def plain(**settings: object) -> dict[str, str]:
    """Environment variables without those that lead Python, or gearmesh, somewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GEARMESH_", "PYTHON"))}
    return kept | {f"GEARMESH_{name.upper()}": str(value) for name, value in settings.items()}


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Only pyzmq, msgpack and numpy are installed beside gearmesh."""
    folder = tmp_path_factory.mktemp("bare")
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in BARE:
        if (LIBRARIES / name).exists():
            (libraries / name).symlink_to(LIBRARIES / name)
    return Environment(folder / "venv", wheel, [libraries])


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All libraries are installed; gearmesh is the wheel's."""
    return Environment(tmp_path_factory.mktemp("full") / "venv", wheel, [LIBRARIES])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working folder, with files in it that are named as ours are."""
    here = tmp_path / "here"
    (here / "frontend").mkdir(parents=True)
    for name in ("broker.py", "mesh.py", "torch.py", "frontend/__init__.py"):
        (here / name).write_text("raise RuntimeError('a file of the user was imported')\n")
    return here


def test_the_wheel_holds_the_product_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PRODUCT)
    data = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    assert {"gearmesh/operations/Procfile", "frontend/gateway/dashboard.html"} < data
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_without_extras_it_needs_three_libraries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        needs = PathDistribution(zipfile.Path(archive, metadata.rpartition("/")[0] + "/")).requires or []
    bare = {need.partition(">")[0].strip() for need in needs if "extra ==" not in need}
    assert bare == {"pyzmq", "msgpack", "numpy"}


def test_a_command_without_its_extra_names_it(bare: Environment, folder: Path) -> None:
    for command in (("up",), ("models",), ("simulate", "x.toml")):
        told = bare.run("gearmesh", *command, cwd=folder)
        assert (told.returncode, "gearmesh[serve]" in told.stderr) == (2, True), told.stderr


def test_a_name_that_needs_an_extra_says_which(bare: Environment, folder: Path) -> None:
    told = bare.run("python", "-P", "-c", "from gearmesh import write_package", cwd=folder)
    assert "gearmesh[serve]" in told.stderr.splitlines()[-1]


IN_THE_WAY = ("frontend/__init__.py", "mesh.py")
REFUSED = """
import gearmesh
with gearmesh.Client("tcp://127.0.0.1:9") as client:
    try:
        client.call("ping", timeout_s=0.01)
    except gearmesh.RequestError as error:
        print(error.code)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project that has packages and files of the names of ours, and imports them."""
    for name in IN_THE_WAY:
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("OURS = False\n")
    return tmp_path / "project"


@pytest.mark.parametrize("first", ["", "import frontend, mesh\n"])
def test_the_client_works_in_a_project_that_has_our_names(bare: Environment, project: Path, first: str) -> None:
    check = "import frontend, mesh\nassert frontend.OURS is mesh.OURS is False\n"
    (project / "main.py").write_text(first + REFUSED + check)
    told = bare.run("python", "main.py", cwd=project)
    assert (told.stdout.strip(), told.stderr) == (ErrorCode.NO_ANSWER, "")


@pytest.mark.parametrize("program", [("gearmesh", "models"), ("python", "-c", "from gearmesh import write_package")])
def test_what_cannot_work_there_names_the_files(bare: Environment, project: Path, program: tuple[str, ...]) -> None:
    told = bare.run(*program, cwd=project, PYTHONPATH=str(project))
    assert told.returncode != 0
    assert all(str(project / name.partition("/")[0]) in told.stderr.splitlines()[-1] for name in IN_THE_WAY)


def test_the_import_costs_no_library(bare: Environment, folder: Path) -> None:
    told = bare.run("python", "-P", "-c", "import gearmesh, sys; print(*sys.modules)", cwd=folder)
    assert not {"zmq", "numpy", "msgpack", "asyncio"} & set(told.stdout.split()), told.stderr


@pytest.fixture
def serving(full: Environment, folder: Path) -> Iterator[str]:
    """`gearmesh up` in the user's folder, with a model in a repository that a setting names; where clients call."""
    repository = folder.parent / "elsewhere" / "models"
    emulated_model(repository, "m")
    port, broker, controller = free_ports(3)
    address = f"tcp://127.0.0.1:{port}"
    settings = plain(
        frontend_port=port, broker_port=broker, controller_port=controller, http_port=0, data_dir=folder / "data",
        model_repository=repository, device=emulated_device(folder.parent),
    )  # fmt: skip
    log = folder.parent / "log"
    with log.open("w") as lines:
        process = subprocess.Popen([full.bin / "gearmesh", "up"], cwd=folder, env=settings, stdout=lines, stderr=lines)
    try:
        asyncio.run(ready(address, process))
        yield address
    finally:
        process.terminate()
        assert process.wait() == 0, log.read_text()


async def ready(address: str, process: "subprocess.Popen[bytes]") -> None:
    """The model can be asked."""
    async with AsyncClient(address) as client:

        async def served() -> bool:
            assert process.poll() is None
            told = await client.call("models", timeout_s=60.0)
            return any(model["ready"] for model in told["models"])

        await until(served)


def test_up_in_any_folder_serves_the_repository_that_a_setting_names_and_the_bare_client_asks_it(
    serving: str, bare: Environment, folder: Path
) -> None:
    told = bare.run("python", "-P", "-c", ASK, serving, cwd=folder)
    assert told.returncode == 0, told.stderr
    model, shape, modules = json.loads(told.stdout)
    assert (model, shape) == ("m", [1, 2])
    assert not {"torch", "msgspec", "pydantic", "structlog", "uvloop", "typer"} & set(modules)
