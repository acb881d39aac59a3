"""What can be imported: exported programs, factories of modules, ONNX files; and how the rest is refused."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from typer.testing import CliRunner

from gearmesh.cli.main import app
from gpu_worker.devices.execution.executables import load_forward, read_image, views
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.importing.sources import Source, import_model
from gpu_worker.packages.package import Package
from mesh.codes import PackageCode
from mesh.errors import PackageError

MODULE = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, width=3, fill=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, width), fill))
    def forward(self, x):
        return x @ self.weight

ready = Scaled(2)
def broken(): raise ValueError("no such weights")
def nothing(): return 7
def leaves(): raise SystemExit("no licence")
"""


class Masked(nn.Module):
    """Takes one input by position and one by name, and returns nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> dict[str, Any]:
        """[batch, 4], [batch] -> scores [batch, 3], rest: [batch, 3] and nothing."""
        scores = self.linear(x)
        return {"scores": scores, "rest": (scores * mask[:, None], None)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The author's folder, with a module in it; it is the working folder."""
    (tmp_path / "author_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "author_module", raising=False)
    return tmp_path


def program(file: Path, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any) -> Path:
    shapes = {name: {0: batch} if batch is not None else None for name in ("x", *kwargs)}
    torch.export.save(torch.export.export(module, args, dict(kwargs), dynamic_shapes=shapes), file)
    return file


def run(package: Package, *inputs: torch.Tensor) -> list[torch.Tensor]:
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    with torch.no_grad():
        return list(load_forward(package)(*views(image, package), *inputs))


def refused(what: Callable[[], object]) -> PackageError:
    with pytest.raises(PackageError) as caught:
        what()
    return caught.value


def test_an_exported_program_is_served_with_the_names_that_it_has(here: Path) -> None:
    module = Masked().eval()
    file = program(here / "m.pt2", module, (torch.randn(2, 4),), {"mask": torch.ones(2)}, Dim("b", min=1, max=16))
    package = import_model(Source(str(file), "m", batch_max=16), here / "r", None)
    assert [(spec.name, spec.dtype, spec.shape) for spec in package.spec.inputs] == [
        ("x", "float32", (-1, 4)), ("mask", "float32", (-1,)),
    ]  # fmt: skip
    assert [spec.name for spec in package.spec.outputs] == ["scores", "rest.0"]
    x, mask = torch.randn(5, 4), torch.rand(5)
    expected = module(x, mask=mask)
    for one, other in zip((expected["scores"], expected["rest"][0]), run(package, x, mask), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "batch_max", "named"),
    [(None, 8, "x"), (Dim("b", min=1, max=4), 8, "4"), (Dim("b", min=4), 8, "4")],
)
def test_a_program_whose_batch_is_too_narrow_is_refused(here: Path, batch: Any, batch_max: int, named: str) -> None:
    file = program(here / "m.pt2", Masked().eval(), (torch.randn(4, 4),), {"mask": torch.ones(4)}, batch)
    error = refused(lambda: import_model(Source(str(file), "m", batch_max=batch_max), here / "r", None))
    assert error.code == PackageCode.BATCH_FIXED
    assert named in error.faults[0]


@pytest.mark.parametrize(
    ("what", "arguments", "width"), [("Scaled", {}, 3), ("Scaled", {"width": 5, "fill": 0.25}, 5), ("ready", {}, 2)]
)
def test_a_factory_is_called_with_its_arguments_and_a_module_is_taken_as_it_is(
    here: Path, what: str, arguments: dict[str, Any], width: int
) -> None:
    source = Source(f"author_module:{what}", "m", {"x": ("float32", (4,))}, arguments=arguments)
    package = import_model(source, here / "r", None)
    (y,) = run(package, torch.ones(2, 4))
    assert torch.allclose(y, torch.full((2, width), 4 * arguments.get("fill", 0.5)))


def test_inputs_can_be_shown_by_an_example(here: Path) -> None:
    example = {"x": np.random.default_rng(0).random((3, 4), np.float32)}
    package = import_model(Source("author_module:Scaled", "m", example=example), here / "r", None)
    assert [(spec.name, spec.shape) for spec in package.spec.inputs] == [("x", (-1, 4))]


def test_without_a_version_the_same_model_keeps_its_number_and_another_one_takes_the_next(here: Path) -> None:
    def numbered(fill: float, version: str | None = None) -> str:
        source = Source("author_module:Scaled", "m", {"x": ("float32", (4,))}, arguments={"fill": fill})
        return import_model(source, here / "r", version).folder.name

    assert [numbered(0.5), numbered(0.5), numbered(1.0), numbered(1.0), numbered(2.0)] == ["1", "1", "2", "2", "3"]
    assert numbered(9.0, "7") == "7"
    assert refused(lambda: numbered(9.5, "7")).code == PackageCode.VERSION_EXISTS
    assert sorted(entry.name for entry in (here / "r").iterdir()) == ["m"]


def test_a_number_that_was_served_is_not_given_again_but_to_what_was_served(here: Path) -> None:
    def numbered(fill: float, known: dict[str, str], version: str | None = None) -> str:
        source = Source("author_module:Scaled", "m", {"x": ("float32", (4,))}, arguments={"fill": fill})
        package = import_model(source, here / "r", version, known=known)
        contents[package.folder.name] = ContentDigests().of(package)
        return package.folder.name

    contents: dict[str, str] = {}
    assert [numbered(fill, {}) for fill in (0.5, 1.0, 2.0)] == ["1", "2", "3"]
    known = dict(contents)
    for gone in ("2", "3"):
        shutil.rmtree(here / "r" / "m" / gone)
    assert numbered(4.0, known) == "4"
    assert numbered(2.0, known) == "3"
    assert refused(lambda: numbered(5.0, known, "2")).code == PackageCode.VERSION_EXISTS
    assert numbered(1.0, known, "2") == "2"


def test_the_same_model_with_another_option_keeps_its_number_and_the_option_is_told(here: Path) -> None:
    notes: list[str] = []
    for slo_ms in (20.0, 30.0):
        source = Source("author_module:Scaled", "m", {"x": ("float32", (4,))}, slo_ms=slo_ms)
        package = import_model(source, here / "r", None, notes=notes)
        assert (package.folder.name, package.spec.slo_ms) == ("1", 20.0)
    assert ["slo_ms" in note for note in notes] == [True]


def test_a_folder_that_is_named_by_a_digit_and_no_number_is_no_version(here: Path) -> None:
    (here / "r" / "m" / "\u00b2").mkdir(parents=True)
    source = Source("author_module:Scaled", "m", {"x": ("float32", (4,))})
    assert import_model(source, here / "r", None).folder.name == "1"


@pytest.mark.parametrize("repository", ["file", "/proc/nope"])
def test_a_repository_that_cannot_be_written_is_said(here: Path, repository: str) -> None:
    (here / "file").write_text("")
    source = Source("author_module:Scaled", "m", {"x": ("float32", (4,))})
    assert refused(lambda: import_model(source, here / repository, None)).code == PackageCode.NOT_WRITTEN


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("gone.pt2", None),
        ("nonsense.pt2", b"nonsense"),
        ("weights.pth", b"x"),
        ("script.py", b"x"),
        ("author_module:nothing", None),
        ("author_module:broken", None),
        ("author_module:leaves", None),
        ("author_module:gone", None),
        ("no_such_module:x", None),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name_and_leaves_nothing(
    here: Path, what: str, content: bytes | None
) -> None:
    if content is not None:
        (here / what).write_bytes(content)
    inputs = {"x": ("float32", (4,))} if ":" in what else {}
    error = refused(lambda: import_model(Source(what, "m", inputs), here / "r", None))
    assert error.code == PackageCode.BAD_SOURCE
    assert what in str(error)
    assert list((here / "r").iterdir()) == []


def test_the_command_makes_a_package_and_says_what_it_takes(here: Path) -> None:
    words = ["import", "author_module:Scaled", "m", "--input", "x:float32:-1,4", "--output", "y", "--batch-max", "4"]
    result = CliRunner().invoke(app, [*words, "--args", '{"width": 2}', "--repository", str(here / "r")])
    assert result.exit_code == 0, result.output
    assert "x: float32 [-1, 4]" in result.stdout
    assert "y: float32 [-1, 2]" in result.stdout
    assert (here / "r" / "m" / "1" / "model.toml").is_file()


@pytest.mark.parametrize("way", ["objects", "damaged", "damaged within", "empty", "text", "no name"])
@pytest.mark.parametrize("named", [True, False])
def test_an_example_that_is_no_good_is_told_by_the_command(here: Path, way: str, named: bool) -> None:
    file = here / ("rows.npy" if way == "no name" else "rows.npz")
    rows = np.random.default_rng(0).random((3, 4), np.float32)
    if way == "no name":
        np.save(file, rows)
    else:
        np.savez(file, x={"objects": np.array([None, 1]), "text": np.array(["a", "b"])}.get(way, rows))
    content = file.read_bytes()
    file.write_bytes({"damaged": content[:50], "empty": b""}.get(way, content))
    if way == "damaged within":
        file.write_bytes(content[:150] + b"\xff" * 8 + content[158:])
    words = ["import", "author_module:Scaled", "m", "--example", str(file), "--repository", str(here / "r")]
    result = CliRunner().invoke(app, [*words, *(["--input", "x:float32:-1,4"] if named else [])])
    assert result.exit_code == (0 if way == "no name" and named else 1 if way in ("text", "no name") else 2)
    assert bool(result.stderr) == bool(result.exit_code)
    assert ("--input" in result.stderr) == (way == "no name" and not named)


@pytest.mark.parametrize(
    "rows", [np.arange(8, dtype=">f4").reshape(2, 4), np.arange(8, dtype="<f4").reshape(2, 4)[::-1]]
)
def test_an_example_may_lie_in_memory_as_it_likes(here: Path, rows: np.ndarray) -> None:
    package = import_model(Source("author_module:Scaled", "m", example={"x": rows}), here / "r", None)
    assert [(spec.name, spec.dtype, spec.shape) for spec in package.spec.inputs] == [("x", "float32", (-1, 4))]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["author_module:Scaled", "--input", "x:float:-1,4"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,\u00b2"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--args", "7"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--input", "x:float32:-1,4"], 2),
        (["author_module:Scaled", "--example", "gone.npz"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,a-b"], 2),
        (["author_module:Scaled", "--input", "x:string:-1"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--dim", "seq"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,seq", "--dim", "seq=1:9", "--dim", "seq=1:8"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--pad", "x=much"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--rows", "boxes"], 2),
        (["author_module:Scaled", "--input", "x:float32:-1,seq"], 1),
        (["author_module:Scaled", "--input", "x:float32:-1,4", "--dim", "seq=1:9"], 1),
        (["author_module:Scaled"], 1),
        (["author_module:Scaled", "bad name!", "--input", "x:float32:-1,4"], 1),
        (["gone.onnx"], 1),
    ],
)
def test_the_command_says_what_is_wrong_and_with_which_exit_code(here: Path, words: list[str], code: int) -> None:
    result = CliRunner().invoke(app, ["import", *words, "--repository", str(here / "r")])
    assert result.exit_code == code, result.output
    assert result.stderr
    assert "Traceback" not in result.output
