"""scripts/bench_gpu.py: how it handles figures, failures and the time limit; its page; and the packages it needs."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.bench_gpu import ROOT, Clock, _all_or_not, environment, files_of_tests, run, run_json
from scripts.rigs.gpu_figures import spread
from scripts.rigs.gpu_needs import NEEDS, Need, complaint, download, missing
from scripts.rigs.gpu_tables import rows, table
from tests.loops import LIMIT_S
from tests.messages import names

FOUND = {
    "device": "cpu", "name": "cpu", "date": "2026-01-02", "quick": True, "torch": "2", "cuda": None, "took_s": 3.0,
    "machine": {"cpu": "some", "cores": 2},
    "steps": {
        "tests": {
            "ok": False, "took_s": 1.0, "passed": 3, "failed": 1, "skipped": 2, "reasons": ["no GPU"],
            "failures": [{"test": "test_this", "why": "because"}],
        },
        "probes": {"ok": False, "took_s": 2.0, "error": "it broke | badly"},
        "worker": {
            "ok": True, "took_s": 2.0,
            "figures": {
                "exec": [
                    {"model": "m", "batch": 1, "n": 9, "p50_ms": 2.0, "p99_ms": 3.0, "p999_ms": 4.0, "max_ms": 5.0},
                    {"model": "m", "batch": 2, "n": 9, "p50_ms": 2.0, "p99_ms": None, "p999_ms": None, "max_ms": 5.0},
                ],
                "load": {"ratio": 0.95},
            },
        },
    },
}  # fmt: skip


def test_the_last_line_of_a_step_is_its_figures() -> None:
    step = run_json([sys.executable, "-c", "print('much'); print('{\"a\": 1}')"], LIMIT_S)
    assert (step["ok"], step["figures"]) == (True, {"a": 1})


def test_a_step_that_fails_or_says_nothing_usable_tells_why() -> None:
    failed = run_json([sys.executable, "-c", "import sys; sys.exit('no such GPU')"], LIMIT_S)
    assert (failed["ok"], failed["error"].strip()) == (False, "no such GPU")
    silent = run_json([sys.executable, "-c", "print('no figures')"], LIMIT_S)
    assert (silent["ok"], "no figures" in silent["error"]) == (False, True)


def test_a_step_that_takes_too_long_is_ended() -> None:
    done = run([sys.executable, "-c", "print('begun', flush=True); import threading; threading.Event().wait()"], 0.5)
    assert done["code"] is None
    assert done["error"]


def test_one_figure_that_cannot_be_had_fails_its_step_and_keeps_the_others() -> None:
    step = {"ok": True, "took_s": 1.0, "figures": {"copies": [], "failed": {"gathers": "RuntimeError: no"}}}
    judged = _all_or_not(step)
    assert (judged["ok"], judged["error"]) == (False, "gathers: RuntimeError: no")
    assert judged["figures"] == step["figures"]
    assert _all_or_not({"ok": True, "took_s": 1.0, "figures": {"failed": {}}})["ok"]
    assert _all_or_not({"ok": False, "took_s": 1.0, "error": "why"})["error"] == "why"


def test_time_that_is_over_is_a_second_and_not_less() -> None:
    assert Clock(0.0).left_s == 1.0
    assert 50.0 < Clock(1.0).left_s <= 55.0


def test_percentiles_that_few_values_do_not_support_are_null() -> None:
    found = spread([i / 1000 for i in range(1, 1001)], 1e-3)
    assert (found["n"], found["p50"], found["p99"], found["p999"], found["max"]) == (1000, 501.0, 991.0, None, 1000.0)


def test_the_page_says_what_failed_and_that_no_gpu_was_there() -> None:
    page = table(FOUND)
    assert "No GPU" in page
    assert "| tests | FAILED | 1 | 3 passed, 1 failed, 2 skipped (no GPU) |" in page
    assert "### failed: test_this" in page
    assert "| probes | FAILED | 2 | it broke / badly |" in page
    assert "| m | 1 | 9 | 2 | 3 | 4 | 5 | 2 |" in page
    assert "| m | 2 | 9 | 2 | - | - | 5 | - |" in page
    assert "| load | ratio 0.95 |" in page


def test_a_table_is_a_head_a_line_and_rows() -> None:
    assert rows(("a", "b"), [(1, 0.12345)]) == ["| a | b |", "|---|---|", "| 1 | 0.1235 |", ""]


# -- what it needs ----------------------------------------------------------------------------------------------------

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
    """These distributions and everything that they require, as far as it is installed here."""
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
    """With only these packages besides torch, all imports of the steps are found, and all GPU tests are collected."""
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
    unused = required({"requests"})  # pytorchcv needs it to download weights
    assert required(names) - required(set(THERE)) - unused <= names


def test_what_brought_our_packages_brings_those_of_the_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "from_a_wheel.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run([sys.executable, "-c", "import from_a_wheel, scripts.bench_gpu"], 60.0)
    assert (done["code"], done["error"]) == (0, "")
    for ours in ({}, {"PYTHONPATH": ""}):
        assert environment(ours)["PYTHONPATH"] == str(ROOT)


def test_what_is_missing_is_named_with_what_it_costs() -> None:
    lacking = missing([Need("msgspec", "msgspec"), Need("no-such", "no_such"), Need("clock", "no_clock", "the time")])
    assert [need.name for need in lacking] == ["no-such", "clock"]
    lines = complaint(lacking).splitlines()
    assert "no-such" in lines[0]
    assert names(lines[1], "clock", "the time")
    assert "bench_gpu wheels FOLDER" in lines[2]
    assert complaint(lacking[1:]).count("\n") == 1
    assert complaint([]) == ""


def test_wheels_are_fetched_in_the_versions_that_are_installed_here(tmp_path: Path) -> None:
    command = download(tmp_path, "3.12", [Need("msgspec", "msgspec"), Need("no-such", "no_such")])
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.12"
    assert command[command.index("--dest") + 1] == str(tmp_path)
    assert command[-2:] == [f"msgspec=={importlib.metadata.version('msgspec')}", "no-such"]
