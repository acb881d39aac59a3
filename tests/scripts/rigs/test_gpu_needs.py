"""scripts/rigs/gpu_needs.py: the list of what bench_gpu needs beside torch and numpy is whole, and can be fetched."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.bench_gpu import ROOT, environment, files_of_tests, run
from scripts.rigs.gpu_needs import NEEDS, Need, complaint, download, missing
from tests.loops import LIMIT_S
from tests.messages import names

THERE = ("torch", "numpy")  # on a machine with a GPU, and what these need themselves
BARE = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

ABSENT = set(sys.argv[1].split(","))
sys.meta_path[:] = map(Bare, sys.meta_path)
import pytest
import pytorchcv.models.resnet
import scripts.gpu_probes, scripts.bench_worker, scripts.build_models
from scripts.bench_gpu import files_of_tests
sys.exit(pytest.main([*files_of_tests(), "--collect-only", "-m", "cuda", "-p", "no:cacheprovider"]))
"""


def required(names: set[str]) -> set[str]:
    """These distributions and all that they need here, as far as that is installed."""
    found, todo = set(), set(names)
    while todo:
        found.add(name := todo.pop())
        try:
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        todo |= {canonicalize_name(w.name) for w in wanted if w.marker is None or w.marker.evaluate()} - found
    return found


def test_the_list_of_needs_is_whole() -> None:
    """With nothing else beside torch, all that the steps import is found, and all tests of a GPU are collected."""
    there = {need.name for need in NEEDS} | required(set(THERE))
    absent = [
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if not there & set(map(canonicalize_name, names)) and "gearmesh" not in names
    ]
    assert {"redis", "onnx", "scipy", "msgpack"} <= set(absent)
    run_bare = [sys.executable, "-c", BARE, ",".join(absent)]
    done = subprocess.run(run_bare, cwd=ROOT, env=environment(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_cuda_device.py" in done.stdout


def test_all_tests_of_a_gpu_are_in_the_files_that_are_run() -> None:
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    marked = {str(file) for file in files if "mark.cuda" in (text := file.read_text()) or "DRIVERS" in text}
    assert marked <= set(files_of_tests())


def test_each_need_brings_its_own_needs() -> None:
    names = {need.name for need in NEEDS}
    unused = required({"requests"})  # pytorchcv's, for fetching weights
    assert required(names) - required(set(THERE)) - unused <= names


def test_what_brought_our_packages_brings_those_of_the_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "from_a_wheel.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run([sys.executable, "-c", "import from_a_wheel, scripts.bench_gpu"], LIMIT_S)
    assert (done["code"], done["error"]) == (0, "")
    for ours in ({}, {"PYTHONPATH": ""}):
        assert environment(ours)["PYTHONPATH"] == str(ROOT)


def test_what_is_missing_is_named_with_what_it_costs_and_how_it_is_brought() -> None:
    lacking = missing([Need("msgspec", "msgspec"), Need("no-such", "no_such"), Need("clock", "no_clock", "the time")])
    assert [need.name for need in lacking] == ["no-such", "clock"]
    needed, useful, *remedy = complaint(lacking).splitlines()
    assert names(needed, "no-such")
    assert not names(needed, "clock")
    assert names(useful, "clock", "the time")
    assert names(" ".join(remedy), "bench_gpu wheels", "--no-index")


def test_what_could_be_done_without_needs_no_remedy() -> None:
    clock = Need("clock", "no_clock", "the time")
    assert len(complaint([clock]).splitlines()) == 1
    assert complaint([]) == ""


def test_wheels_are_fetched_in_the_versions_that_are_installed_here(tmp_path: Path) -> None:
    command = download(tmp_path, "3.12", [Need("msgspec", "msgspec"), Need("no-such", "no_such")])
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.12"
    assert command[command.index("--dest") + 1] == str(tmp_path)
    assert command[-2:] == [f"msgspec=={importlib.metadata.version('msgspec')}", "no-such"]
