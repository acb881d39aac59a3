"""The content of a container's code, and the independence of its rows: real child processes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpu_worker.container.process import ChildProcess
from gpu_worker.container.promises import content_of, model_spec
from gpu_worker.container.specs import ContainerError, ContainerOptions
from tests.gpu_worker.container.container_builders import X, Y, write


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds the code."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- whether rows are independent of each other -----------------------------------------------------------------------

SAMPLE = np.array([[1, 2, 3, 4], [1000, 2, 3, 4], [0, 0, 0, 0]], np.float32)
DEPENDENT = [
    "x - x.mean(axis=0)",
    "np.sort(x, axis=0)",
    "x[::-1]",
    "x / len(x)",
    "(x > x.mean()).astype(np.int64)",
    "np.where(x == x.max(), np.nan, x)",
    "x + 2e-4 * len(x) * x.max(axis=1, keepdims=True)",
    "x if len(x) > 1 else (_ for _ in ()).throw(ValueError('one row is too few'))",
]
INDEPENDENT = [
    "x - x.mean(axis=1, keepdims=True)",
    "x * (1 + 2e-5 * len(x))",  # as sums in another order differ
    "x / 0 * np.sign(x)",  # NaN and infinity
    "(x > 2)",
    "x.astype(np.int64)",
    "x[:, :1] * [1, 2, 3, 4]",
]


def options(folder: Path, expression: str, **given: object) -> ContainerOptions:
    write(folder, f"def f(x):\n    with np.errstate(all='ignore'):\n        return {expression}")
    np.save(folder / "sample.npy", SAMPLE)
    known = {"model": "f", "predict": "mine:f", "python": sys.executable, "sample": folder / "sample.npy"}
    return ContainerOptions(**{**known, **given})  # type: ignore[arg-type]


def starts(told: ContainerOptions) -> dict[str, object]:
    child = ChildProcess(told)
    ready = child.wait_ready(30.0)
    child.end()
    return ready


@pytest.mark.parametrize("expression", DEPENDENT)
def test_rows_that_depend_on_each_other_are_refused_at_the_start(folder: Path, expression: str) -> None:
    told = options(folder, expression)
    with pytest.raises(ContainerError) as raised:
        starts(told)
    assert "WrongOutput" in str(raised.value)
    starts(replace(told, cache=False))  # outputs that may differ cannot be compared
    starts(replace(told, batch_max=1))  # no row is ever in a batch with others


@pytest.mark.parametrize("expression", INDEPENDENT)
def test_rows_that_are_the_same_by_themselves_are_served(folder: Path, expression: str) -> None:
    starts(options(folder, expression))


def test_a_sample_of_one_row_shows_nothing_of_others(folder: Path) -> None:
    told = options(folder, "x - x.mean(axis=0)")
    np.save(folder / "sample.npy", SAMPLE[:1])
    starts(told)


def test_outputs_of_one_number_for_each_row_are_compared_as_well(folder: Path) -> None:
    starts(options(folder, "x.sum(axis=1)"))
    with pytest.raises(ContainerError):
        starts(options(folder, "x.sum(axis=1) - x.sum()"))


# -- the content of code ----------------------------------------------------------------------------------------------


def content(told: ContainerOptions) -> str:
    ready = starts(told)
    spec = model_spec(told, ready["inputs"], ready["outputs"])
    return content_of(str(ready["code"]), spec)


def test_the_content_is_the_source_and_what_is_declared_and_not_how_it_is_served(folder: Path) -> None:
    told = options(folder, "x * 2", inputs=(X,), outputs=(Y,))
    first = content(told)
    assert content(replace(told, slo_ms=5.0, batch_max=7, batching="none", sample=None)) == first
    assert content(replace(told, labels=("a", "b"))) != first
    assert content(replace(told, outputs=({**Y, "dtype": "float64"},))) != first
    assert content(replace(told, inputs=({**X, "name": "z"},))) != first
    assert content(options(folder, "x * 3", inputs=(X,), outputs=(Y,))) != first
    assert content(options(folder, "x * 2", inputs=(X,), outputs=(Y,))) == first


@pytest.mark.parametrize("where", ["mine", "beside", "package.inner"])
def test_code_is_compiled_from_the_source_that_is_there_and_not_from_what_was_compiled_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Python accepts bytecode for a source of the same second and size, which `cp -p` and `tar` produce."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    told = options(folder, "x")
    file = folder.joinpath(*where.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    if where == "beside":
        write(folder, "from beside import f")
    elif where != "mine":
        told = replace(told, predict=f"{where}:f")

    def code(columns: int) -> None:
        file.write_text(f"def f(x):\n    return x[:, :{columns}]\n")
        os.utime(file, (1_700_000_000, 1_700_000_000))

    code(1)
    subprocess.run([sys.executable, "-c", f"import {where}"], cwd=folder, check=True)
    assert list(file.parent.glob("__pycache__/*.pyc"))
    first = starts(told)
    code(3)
    second = starts(told)
    assert [ready["outputs"][0]["shape"] for ready in (first, second)] == [[-1, 1], [-1, 3]]
    assert (first["code"] == second["code"]) == (where == "beside")


def test_a_module_of_the_folder_does_not_take_the_place_of_one_that_is_built_in(folder: Path) -> None:
    (folder / "time.py").write_text("raise RuntimeError\n")
    write(folder, "import time\ntime.monotonic()\ndef f(x): return x")
    starts(ContainerOptions(model="f", predict="mine:f", python=sys.executable, inputs=(X,), outputs=(Y,)))


def test_code_that_is_written_to_while_it_is_imported_is_refused(folder: Path) -> None:
    told = options(folder, "x")
    write(folder, "open(__file__, 'a').write('# later')\ndef f(x): return x")
    with pytest.raises(ContainerError, match="SourceChanged"):
        starts(told)


def test_a_module_that_takes_another_s_place_has_a_content_too(folder: Path) -> None:
    told = options(folder, "x")
    write(folder, "import types\nsys.modules[__name__] = types.SimpleNamespace(f=lambda x: x)")
    assert content(told) == content(told)
