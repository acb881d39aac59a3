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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PathDistribution, files, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

import gearmesh
from frontend.client.async_client import AsyncClient
from gearmesh.cli.main import COMMANDS
from gearmesh.cli.start import NEEDS
from gearmesh.operations.ports import free_ports
from mesh.codes import ErrorCode
from mesh.process.compiled import LIBRARY, MANIFEST, PURE, SUFFIX, Why, asked_for_pure
from scripts import ROOT
from scripts.rigs.house import PRODUCT
from scripts.rigs.meshes import emulated_device, emulated_model, until

pytestmark = pytest.mark.end_to_end

LIBRARIES = Path(sysconfig.get_path("purelib"))
ASK = """
import json, sys
import numpy as np
from gearmesh import Client
with Client(sys.argv[1]) as client:
    prediction = client.infer("m", np.ones((1, 4), np.float32), slo_ms=40_000)
print(json.dumps([prediction.model, list(prediction.output.shape), sorted(sys.modules)]))
"""


def built(folder: Path, **environment: str) -> Path:
    """A wheel, from a copy of what is committed to, so that nothing is left behind in the checkout."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PRODUCT:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    (source / "scripts").mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "scripts/__init__.py", "scripts/compiling.py"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True, capture_output=True, env=os.environ | environment,
    )  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the form in which the tests run."""
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def compiled_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one of all tests if it is compiled; else one that is made for its own tests, and need not be quick."""
    if not asked_for_pure():
        return wheel
    return built(tmp_path_factory.mktemp("compiled"), **{PURE: "0", "CFLAGS": "-O0"})


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


def requirements(wheel: Path) -> list[Requirement]:
    """What the wheel says that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        needs = PathDistribution(zipfile.Path(archive, metadata.rpartition("/")[0] + "/")).requires or []
    return [Requirement(need) for need in needs]


def brought(needs: Iterable[Requirement], extra: str, known: set[str]) -> set[str]:
    """Adds to `known` the names of what pip would install for these needs and the extra, and returns it."""
    for need in needs:
        if need.name not in known and (need.marker is None or need.marker.evaluate({"extra": extra})):
            known.add(need.name)
            brought(map(Requirement, requires(need.name) or []), "", known)
    return known


def limited(folder: Path, wheel: Path, extra: str) -> Environment:
    """Only what `pip install WHEEL[extra]` brings is installed beside gearmesh; without an extra, what the wheel needs.

    The libraries are links to where they are installed.
    """
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in brought(requirements(wheel), extra, set()):
        for top in {file.parts[0] for file in files(name) or []} - {"..", "__pycache__"}:
            if not (libraries / top).exists():
                (libraries / top).symlink_to(LIBRARIES / top)
    return Environment(folder / "venv", wheel, [libraries])


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Only pyzmq, msgpack and numpy are installed beside gearmesh."""
    return limited(tmp_path_factory.mktemp("bare"), wheel, "")


@pytest.fixture(scope="module")
def with_cli(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Only what the extra `cli` brings is installed beside gearmesh."""
    return limited(tmp_path_factory.mktemp("cli"), wheel, "cli")


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
    assert {f"{top}/py.typed" for top in PRODUCT} < data
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_without_extras_it_needs_three_libraries(wheel: Path) -> None:
    assert brought(requirements(wheel), "", set()) == {"pyzmq", "msgpack", "numpy"}


FORM = """
import mesh.sizes
from mesh.process.compiled import form
print(*form()[:2], type(mesh.sizes.joint).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
def test_a_compiled_wheel_is_for_this_python_and_machine_and_matches_where_it_is_installed(
    compiled_wheel: Path, tmp_path: Path
) -> None:
    found = {name for name in zipfile.ZipFile(compiled_wheel).namelist() if name.startswith("mesh/compiled/")}
    assert found == {f"mesh/compiled/{name}" for name in (MANIFEST, LIBRARY + SUFFIX, f"_channel{SUFFIX}")}
    _, _, _, tags = parse_wheel_filename(compiled_wheel.name)
    assert tags <= set(sys_tags())
    assert {tag.interpreter for tag in tags} == {f"cp{sysconfig.get_config_var('py_version_nodot')}"}
    environment = Environment(tmp_path / "venv", compiled_wheel, [LIBRARIES])
    told = environment.run("python", "-P", "-c", FORM, cwd=tmp_path)
    assert told.stdout.split() == ["True", Why.MATCHES, "builtin_function_or_method"], told.stderr


EXTRA_OF = {
    ("up",): "serve",
    ("import", "x.onnx"): "serve",
    ("models",): "cli",
    ("--help",): "cli",
    ("load", "--rate", "5"): "load",
    ("simulate", "x.toml"): "simulate",
}


@pytest.mark.parametrize("command", EXTRA_OF, ids=lambda command: command[0])
def test_a_command_without_its_extra_names_it(bare: Environment, folder: Path, command: tuple[str, ...]) -> None:
    told = bare.run("gearmesh", *command, cwd=folder)
    assert (told.returncode, f"'gearmesh[{EXTRA_OF[command]}]'" in told.stderr) == (2, True), told.stderr


TALKING = {  # {command that needs the extra `cli`: exit code where no mesh is up}
    ("status",): 2,
    ("top", "-n", "1"): 2,
    ("logs",): 2,
    ("metrics",): 2,
    ("trace", "x.json"): 2,
    ("models",): 2,
    ("deploy", "m"): 2,
    ("undeploy", "m"): 2,
    ("rollback", "m"): 2,
    ("apps",): 2,
    ("infer", "m", "[[1, 2, 3, 4]]"): 2,
    ("feedback", "1", "--label", "2"): 2,
    ("scale", "m", "1"): 1,  # says that no `gearmesh up` runs here
    ("doctor",): 1,  # says that torch is not installed
    ("keys", "keys"): 0,
    ("completion", "bash"): 0,
}


def test_every_command_that_needs_no_other_extra_is_tried_with_the_extra_cli() -> None:
    assert {first for first, *_ in TALKING} == COMMANDS.keys() - NEEDS.keys()


@pytest.fixture(scope="module")
def talked(
    with_cli: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    """{command: how it ended} of all commands that need the extra `cli` alone, run at the same time: most only wait."""
    here = tmp_path_factory.mktemp("talking")
    emulated_model(here / "model_repository", "m")
    port, broker, controller = free_ports(3)
    settings = plain(frontend_port=port, broker_port=broker, controller_port=controller, http_port=0)
    with ThreadPoolExecutor(4) as pool:
        ended = pool.map(lambda command: with_cli.run("gearmesh", *command, cwd=here, **settings), TALKING)
        return dict(zip(TALKING, ended, strict=True))


@pytest.mark.parametrize("command", TALKING, ids=lambda command: command[0])
def test_with_the_extra_cli_a_command_runs_until_nobody_answers(
    talked: dict[tuple[str, ...], subprocess.CompletedProcess[str]], command: tuple[str, ...]
) -> None:
    told = talked[command]
    assert told.returncode == TALKING[command], told.stderr
    assert not [word for word in ("Traceback", "pip install", "--help") if word in told.stderr], told.stderr


def test_doctor_says_what_is_not_installed_and_examines_the_models_all_the_same(
    talked: dict[tuple[str, ...], subprocess.CompletedProcess[str]],
) -> None:
    told = talked["doctor",].stdout
    assert all(text in told for text in ("'gearmesh[serve]'", "m:1"))


@pytest.mark.parametrize("option", ["--version", "-h"])
def test_the_command_says_what_it_is(with_cli: Environment, folder: Path, option: str) -> None:
    told = with_cli.run("gearmesh", option, cwd=folder)
    assert (told.returncode, "gearmesh" in told.stdout) == (0, True), told.stderr


def test_all_public_names_but_the_one_that_needs_an_extra_come_with_a_star(bare: Environment, folder: Path) -> None:
    program = "from gearmesh import *; import gearmesh; print(Client, AsyncClient, RequestError, gearmesh.__version__)"
    told = bare.run("python", "-P", "-c", program, cwd=folder)
    assert told.stdout.split()[-1] == version("gearmesh"), told.stderr
    assert set(gearmesh.MODULES) - set(gearmesh.__all__) == {"write_package"}


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
def serving(full: Environment, folder: Path) -> Iterator[dict[str, str]]:
    """`gearmesh up` in the user's folder, with a model in a repository that a setting names; its environment."""
    repository = folder.parent / "elsewhere" / "models"
    emulated_model(repository, "m")
    port, broker, controller = free_ports(3)
    settings = plain(
        frontend_port=port, broker_port=broker, controller_port=controller, http_port=0, data_dir=folder / "data",
        model_repository=repository, device=emulated_device(folder.parent),
    )  # fmt: skip
    log = folder.parent / "log"
    with log.open("w") as lines:
        process = subprocess.Popen([full.bin / "gearmesh", "up"], cwd=folder, env=settings, stdout=lines, stderr=lines)
    try:
        asyncio.run(ready(f"tcp://127.0.0.1:{port}", process))
        yield settings
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
    serving: dict[str, str], bare: Environment, folder: Path
) -> None:
    address = f"tcp://127.0.0.1:{serving['GEARMESH_FRONTEND_PORT']}"
    told = bare.run("python", "-P", "-c", ASK, address, cwd=folder)
    assert told.returncode == 0, told.stderr
    model, shape, modules = json.loads(told.stdout)
    assert (model, shape) == ("m", [1, 2])
    assert not {"torch", "msgspec", "pydantic", "structlog", "uvloop", "typer"} & set(modules)


def test_with_the_extra_cli_models_are_deployed_and_the_mesh_is_watched(
    serving: dict[str, str], with_cli: Environment, folder: Path
) -> None:
    emulated_model(folder / "mine", "n")
    for command in (("deploy", "./mine/n"), ("status",), ("infer", "n", "[[1, 2, 3, 4]]"), ("undeploy", "n")):
        told = with_cli.run("gearmesh", *command, cwd=folder, **serving)
        assert (told.returncode, "n" in told.stdout) == (0, True), (command, told.stdout, told.stderr)
