"""ONNX files and exported programs with dimensions that are free beside the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.export import Dim
from typer.testing import CliRunner

from gearmesh.cli.main import app
from gpu_worker.devices.execution.executables import load_forward, read_image, views
from gpu_worker.packages.importing.onnx_files import write_onnx_package
from gpu_worker.packages.importing.sources import Source, import_model
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SUMMED = """(int64[N,S] ids, bool[N,S] mask) => (float[N,4] y, float[N,S,4] each) {
    words = Gather(table, ids)
    shown = Cast<to = 1>(mask)
    wide = Unsqueeze(shown, last)
    each = Mul(words, wide)
    y = ReduceSum<keepdims = 0>(each, middle)
}"""
MEAN = "(float[N,S] x) => (float[N] y) { y = ReduceMean<axes = [1], keepdims = 0>(x) }"
TABLE = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
AXES = {"last": np.array([2]), "middle": np.array([1])}
DIMS = {"S": (1, 60)}


def written(file: Path, text: str, **weights: Any) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n g {text}')
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, str(file))
    return file


def refused(act: Callable[[], object]) -> PackageError:
    with pytest.raises(PackageError) as caught:
        act()
    return caught.value


def run_onnx(package: Package, **inputs: Any) -> list[Any]:
    assert package.graph is not None
    session = onnxruntime.InferenceSession(str(package.graph), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {**load_file(package.weights_file), **inputs})
    return found


def test_a_file_with_a_free_dimension_is_served_at_all_its_extents(tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", SUMMED, table=TABLE, **AXES)
    package = write_onnx_package(tmp_path / "r", "m", "1", file, dims=DIMS, pad={"ids": 1}, batch_max=6)
    spec = package.spec
    assert spec.dims == (wire.Dim(name="S", least=1, most=60),)
    assert [(t.name, t.dims, t.pad) for t in spec.inputs] == [("ids", ("S",), 1.0), ("mask", ("S",), 0.0)]
    assert [(t.name, t.shape, t.dims) for t in spec.outputs] == [("y", (-1, 4), ()), ("each", (-1, -1, 4), ("S", ""))]
    generator = np.random.default_rng(1)
    for rows, extent in ((1, 1), (3, 60), (6, 17)):
        ids, mask = generator.integers(0, 50, (rows, extent)), generator.random((rows, extent)) < 0.7
        y, each = run_onnx(package, ids=ids, mask=mask)
        assert np.allclose(each, TABLE[ids] * mask[:, :, None], atol=1e-5)
        assert np.allclose(y, each.sum(1), atol=1e-4)


def test_a_free_dimension_without_a_range_is_refused_with_what_to_type(tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", SUMMED, table=TABLE, **AXES)
    error = refused(lambda: write_onnx_package(tmp_path / "r", "m", "1", file))
    assert error.code == PackageCode.BAD_INPUTS
    assert "ids is ['batch', 'S']" in str(error)
    assert "--dim S=1:512 (dims={'S': (1, 512)})" in str(error)


@pytest.mark.parametrize(
    ("text", "options", "code", "told"),
    [
        (
            MEAN,
            {},
            "padding_matters",
            "mask",
        ),
        (MEAN, {"exact": True}, "", ""),
        ("(float[N,S] x) => (float[N,S] y) { y = Sin(x) }", {}, "", ""),
        ("(float[N,S] x) => (float[N,S] y) { m = ReduceMean<axes = [0]>(x)\n y = Sub(x, m) }", {}, "rows_mixed", ""),
        ("(float[N,?] x) => (float[N,?] y) { y = Sin(x) }", {}, "bad_inputs", "have names"),
        ("(float[N,S] x) => (float[N,T] y) { y = Concat<axis = 1>(x, x) }", {}, "bad_outputs", "neither fixed nor S"),
        ("(float[N,S] x) => (float[N,T] y) { y = Concat<axis = 1>(x, x) }", {"exact": True}, "", ""),
        ("(float[N,4] x) => (float[N,4] y) { y = Sin(x) }", {}, "bad_argument", "dims S is in the shape of no input"),
        ("(float[N,S] x) => (float[N,S] y) { y = Sin(x) }", {"dims": {"S": (9, 1)}}, "bad_argument", "least"),
        ("(float[N,S] x) => (float[N,S] y) { y = Sin(x) }", {"pad": {"z": 1}}, "bad_argument", "pad names 'z'"),
        ("(float[N,S] x) => (float[N,S] y) { y = Add(x, row) }", {}, "forward_failed", "with S=8"),
    ],
)
def test_a_file_is_tried_as_a_module_is(
    tmp_path: Path, text: str, options: dict[str, Any], code: str, told: str
) -> None:
    file = written(tmp_path / "m.onnx", text, **({"row": np.ones(7, np.float32)} if "row" in text else {}))
    try:
        write_onnx_package(tmp_path / "r", "m", "1", file, **{"dims": DIMS, "batch_max": 6} | options)
        found, sentence = "", ""
    except PackageError as error:
        found, sentence = str(error.code), str(error)
    assert found == code, sentence
    assert told in sentence


def test_detections_of_a_file_are_told_apart_by_their_owner(tmp_path: Path) -> None:
    text = """(float[N,5] x) => (float[M] boxes, int64[M] owner) {
        zero = Constant<value_float = 0.0>()
        is = Greater(x, zero)
        at = NonZero(is)
        first = Gather<axis = 0>(at, index)
        owner = Squeeze(first, axis)
        places = Transpose(at)
        boxes = GatherND(x, places)
    }"""
    file = written(tmp_path / "m.onnx", text, index=np.array([0]), axis=np.array([0]))
    package = write_onnx_package(tmp_path / "r", "m", "1", file, rows={"boxes": "owner"}, batch_max=4)
    assert [(t.name, t.shape, t.owner) for t in package.spec.outputs] == [
        ("boxes", (-1,), "owner"),
        ("owner", (-1,), ""),
    ]


def test_the_command_takes_ranges_and_shows_names(tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", SUMMED, table=TABLE, **AXES)
    words = ["import", str(file), "m", "--dim", "S=1:60", "--pad", "ids=1", "--batch-max", "4"]
    result = CliRunner().invoke(app, [*words, "--repository", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert "ids: int64 [-1, S]" in result.stdout
    assert "each: float32 [-1, S, 4]" in result.stdout


# -- FILE.pt2 ---------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.words(ids) * mask[:, :, None]).sum(1)


def program(file: Path, least: int = 1, most: int = 40) -> Path:
    opened = {0: Dim("b", min=1, max=8), 1: Dim("s", min=least, max=most)}
    args = (torch.zeros(2, 9).long(), torch.ones(2, 9).bool())
    torch.export.save(torch.export.export(Pooled().eval(), args, dynamic_shapes=(opened, opened)), file)
    return file


def test_an_exported_program_is_served_at_all_its_extents(tmp_path: Path) -> None:
    file = program(tmp_path / "m.pt2")
    package = import_model(Source(str(file), "m", batch_max=8, dims={"seq": (1, 40)}), tmp_path / "r", None)
    assert package.spec.dims == (wire.Dim(name="seq", least=1, most=40),)
    assert [(t.name, t.dims) for t in package.spec.inputs] == [("ids", ("seq",)), ("mask", ("seq",))]
    image = np.zeros(package.image_bytes, np.uint8)
    read_image(package, image)
    weights = list(views(image, package))
    for extent in (1, 5, 40):
        ids, mask = torch.randint(0, 30, (3, extent)), torch.rand(3, extent) < 0.5
        with torch.no_grad():
            (found,) = load_forward(package)(*weights, ids, mask)
        assert torch.allclose(found, (weights[0][ids] * mask[:, :, None]).sum(1), atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "told"),
    [
        ({}, "give each a name and a range, in this order, as --dim seq=1:40"),
        ({"seq": (1, 40), "w": (1, 2)}, "1 dimensions of its inputs are open"),
        ({"seq": (1, 41)}, "dims seq is 1 to 41; the program takes 1 to 40"),
    ],
)
def test_a_program_is_refused_at_extents_that_it_does_not_take(tmp_path: Path, dims: Any, told: str) -> None:
    file = program(tmp_path / "m.pt2")
    error = refused(lambda: import_model(Source(str(file), "m", batch_max=8, dims=dims), tmp_path / "r", None))
    assert error.code == PackageCode.BAD_INPUTS
    assert told in str(error)
