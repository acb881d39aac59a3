"""Open dimensions: as they are given to write_package, as model.toml has them, and what of that is refused."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package, tensors_told
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

INPUTS = {"ids": ("int64", ("seq",)), "x": ("float32", ("seq", 3)), "mask": ("bool", ("seq",))}
DIMS = {"seq": (2, 30)}


class Pooled(nn.Module):
    """Sums what the mask shows; the words count, too."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        shown = (x + ids[:, :, None]).masked_fill(~mask[:, :, None], 0.0)
        return {"sum": shown.sum(1), "each": shown}


def written(folder: Path, **options: Any) -> Package:
    given = {"inputs": INPUTS, "dims": DIMS, "pad": {"ids": 7, "x": 0.5}, "batch_max": 4} | options
    return write_package(folder, "m", "1", Pooled(), **given)


def faults_of(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(PackageError) as caught:
        written(folder, **options)
    assert caught.value.code == PackageCode.BAD_ARGUMENT
    assert list(folder.iterdir()) == []
    return caught.value.faults


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return written(tmp_path_factory.mktemp("repository"))


# -- model.toml -------------------------------------------------------------------------------------------------------


def test_what_was_said_of_open_dimensions_is_read_back(package: Package) -> None:
    spec = package.spec
    assert spec.dims == (wire.Dim(name="seq", least=2, most=30),)
    assert [(t.name, t.shape, t.dims, t.pad) for t in spec.inputs] == [
        ("ids", (-1, -1), ("seq",), 7.0), ("x", (-1, -1, 3), ("seq", ""), 0.5), ("mask", (-1, -1), ("seq",), 0.0),
    ]  # fmt: skip
    assert [(t.name, t.shape, t.dims) for t in spec.outputs] == [
        ("sum", (-1, 3), ()), ("each", (-1, -1, 3), ("seq", "")),
    ]  # fmt: skip
    assert spec.fault() == ""


def test_the_manifest_has_them_as_people_write_them(package: Package) -> None:
    text = tomllib.loads(package.manifest.read_text())
    assert text["dims"] == {"seq": [2, 30]}
    assert "exact" not in text
    assert [(one["shape"], one.get("pad")) for one in text["inputs"]] == [
        ([-1, "seq"], 7), ([-1, "seq", 3], 0.5), ([-1, "seq"], None),
    ]  # fmt: skip
    assert [one["shape"] for one in text["outputs"]] == [[-1, 3], [-1, "seq", 3]]


def test_tensors_without_open_dimensions_are_told_as_before_there_were_any() -> None:
    spec = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4))
    assert tensors_told([spec]) == b'[["x","float32",[-1,4]]]', "versions that were served keep their digests"
    other = wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("seq",))
    assert tensors_told([other]) != tensors_told([wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1))])


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("seq = [2, 30]", "seq = [30, 2]", "1 <= least <= most"),
        ("seq = [2, 30]", "seq = [0, 30]", "1 <= least <= most"),
        ("seq = [2, 30]", "seq = [2]", "two whole numbers"),
        ("seq = [2, 30]", 'seq = "2 to 30"', "dims"),
        ("seq = [2, 30]", "seq = [5, 5]", "one extent alone"),
        ("seq = [2, 30]", "seq = [2, 30]\nw = [1, 2]", "dims w is in the shape of no input"),
        ("seq = [2, 30]", "seq = [2, 30]\nv = [1, 2]\nw = [1, 2]", "2 open dimensions"),
        ("seq = [2, 30]", "len = [2, 30]", "'seq', of which [dims] says no least"),
        ("seq = [2, 30]", '"a b" = [2, 30]', "letters, digits and _"),
        ('"bool"\nshape = [-1, "seq"]', '"bool"\nshape = [-1, "seq"]\npad = 1', "a bool is filled up with False"),
        ("pad = 7", "pad = 7.5", "whole number"),
        ("pad = 7", 'pad = "7"', "pad"),
        ('shape = [-1, "seq", 3]\npad', 'shape = [-1, -1, 3]\npad', "inputs x: shape must be"),
        ('name = "sum"', 'pad = 3\nname = "sum"', "pad is of inputs"),
        ('name = "ids"', 'owner = "x"\nname = "ids"', "owner and count are of outputs"),
        ('name = "sum"', 'owner = "each"\nname = "sum"', "owner 'each' must be another output, int64 [-1]"),
        ('name = "sum"', 'count = "nobody"\nname = "sum"', "count 'nobody' must be another output"),
        ("[architecture]", "exact = 1\n[architecture]", "exact"),
    ],
)  # fmt: skip
def test_what_the_manifest_says_wrongly_is_named(
    package: Package, tmp_path: Path, old: str, new: str, fault: str
) -> None:
    copied = tmp_path / "m" / "1"
    copied.mkdir(parents=True)
    for file in package.folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    text = package.manifest.read_text()
    assert old in text
    (copied / "model.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(PackageError) as caught:
        read_package(tmp_path, "m:1", ())
    assert all(sentence.startswith("model.toml: ") for sentence in caught.value.faults)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"x": (4, 31, 3)}, "must hold"), ({"x": (4, 9, 3), "ids": (4, 8)}, "must hold"), ({"x": (4, 8)}, "must hold"),
     ({"mask": (4, 1), "ids": (4, 1), "x": (4, 1, 3)}, "must hold")],
)  # fmt: skip
def test_an_example_has_one_extent_within_the_range(
    package: Package, tmp_path: Path, change: dict[str, tuple[int, ...]], told: str
) -> None:
    copied = tmp_path / "m" / "1"
    copied.mkdir(parents=True)
    for file in package.folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    rows = load_file(copied / "example.safetensors")
    assert {name: array.shape[1:2] for name, array in rows.items()} == {"ids": (8,), "x": (8,), "mask": (8,)}
    (copied / "example.safetensors").unlink()
    save_file({n: np.zeros(change.get(n, a.shape), a.dtype) for n, a in rows.items()}, copied / "example.safetensors")
    with pytest.raises(PackageError, match=told):
        read_package(tmp_path, "m:1", ())


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"dims": {"len": (1, 5)}}, 'dims says nothing of seq: give its least and most, as dims={"seq": (1, 512)}'),
        ({"dims": DIMS | {"w": (1, 5)}}, "dims w is in the shape of no input"),
        ({"dims": DIMS | {"v": (1, 5), "w": (1, 5)}}, "a model may have 2 open dimensions"),
        ({"dims": {"seq": (5, 1)}}, "1 <= least <= most"),
        ({"dims": {"seq": (0, 5)}}, "1 <= least <= most"),
        ({"dims": {"seq": (5, 5)}}, "give this number in the shapes"),
        ({"dims": {"seq": 5}}, "two whole numbers"),
        ({"dims": {"seq": (1, 5.0)}}, "two whole numbers"),
        ({"dims": {"seq": (1, True)}}, "two whole numbers"),
        ({"dims": [("seq", 1, 5)]}, "dims must be {name: (least, most)}"),
        ({"dims": {3: (1, 5)}}, "letters, digits and _"),
        ({"dims": {"a-b": (1, 5)}}, "letters, digits and _"),
        ({"pad": {"words": 0}}, "pad names 'words'; the inputs are ids, x, mask"),
        ({"pad": {"mask": 0}}, "a bool is filled up with False"),
        ({"pad": {"ids": 0.5}}, "whole number"),
        ({"pad": {"ids": 1 << 62}}, "whole number from -9007199254740992 to 9007199254740992"),
        ({"pad": {"x": float("nan")}}, "finite number"),
        ({"pad": {"x": 1e30}}, "within"),
        ({"pad": {"x": "0"}}, "finite number"),
        ({"pad": 0}, "pad must be {input: number}"),
        ({"exact": 1}, "exact must be True or False"),
        ({"exact": True}, "with exact=True nothing is filled up"),
        ({"rows": ["boxes"]}, 'rows must be {output: output that tells its rows}, as {"boxes": "owner"}'),
        ({"inputs": INPUTS | {"y": ("float32", ("seq", "seq"))}}, "is two of its dimensions"),
        ({"inputs": INPUTS | {"y": ("string", ())}}, "serve the function as a container"),
        ({"inputs": INPUTS | {"y": ("bytes", (2,))}}, "a graph takes no bytes"),
        ({"inputs": INPUTS | {"y": ("float32", ("seq", 1 << 26))}}, "smaller most extent"),
        ({"inputs": INPUTS | {"y": ("float32", (-1,))}}, "positive extents"),
        ({"inputs": {"x": ("float32", (4,))}, "dims": {}, "pad": {"x": 1}}, "has no open dimension"),
        ({"inputs": {"x": ("float32", (4,))}, "dims": {}, "pad": {}, "exact": True}, "no dims that could be filled up"),
    ],
)
def test_what_is_said_wrongly_of_open_dimensions_is_named(tmp_path: Path, options: dict[str, Any], fault: str) -> None:
    assert any(fault in sentence for sentence in faults_of(tmp_path, **options)), faults_of(tmp_path, **options)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    inputs = {"ids": ("int64", ("seq",)), "x": ("string", ("w",)), "y": ("float32", ("z",))}
    told = faults_of(tmp_path, inputs=inputs, dims={"seq": (9, 3), "u": (1, 2)}, pad={"ids": 0.5, "no": 1}, exact="yes")
    assert len(told) == 7
    assert [sum(word in fault for fault in told) for word in ("seq", "'x'", "'y'", "'no'", "exact", "dims u")] == [
        1, 1, 1, 1, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ({"ids": (2, 31), "x": (2, 31, 3), "mask": (2, 31)}, "seq must be 2 to 30; it is 31"),
        (
            {"ids": (2, 5), "x": (2, 5, 3), "mask": (2, 6)},
            "seq must be the same in all inputs; it is 5 in ids",
        ),
        ({"ids": (2, 5), "x": (2, 5), "mask": (2, 5)}, "must be float32 [rows, seq, 3]"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(tmp_path: Path, shapes: dict[str, Any], fault: str) -> None:
    rows = {name: np.arange(np.prod(shape)).reshape(shape) > 0 for name, shape in shapes.items()}
    with pytest.raises(PackageError) as caught:
        written(tmp_path, example=rows)
    assert caught.value.code == PackageCode.BAD_EXAMPLE
    assert fault in str(caught.value)


def test_rows_of_an_example_are_tried_at_other_extents_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    rows = {"x": generator.normal(size=(3, 6, 2)), "n": np.array([2, 6, 4])}

    def at(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return x[torch.arange(x.shape[0]), n - 1]

    class Step(nn.Module):
        def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
            return at(x, n)

    inputs = {"x": ("float32", ("seq", 2)), "n": ("int64", ())}
    package = write_package(tmp_path, "m", "1", Step(), inputs=inputs, dims={"seq": (1, 20)}, example=rows, batch_max=3)
    assert load_file(package.folder / "example.safetensors")["x"].shape == (4, 6, 2)


class Hidden(nn.Module):
    """Attends to what the mask shows, and computes with the mask's values, as models of transformers do."""

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = (1.0 - attention_mask[:, None].to(x.dtype)) * torch.finfo(x.dtype).min
        return torch.softmax(x @ x.transpose(1, 2) + hidden, -1) @ x


def test_random_rows_of_a_mask_of_integers_hide_no_row_as_a_whole(tmp_path: Path) -> None:
    inputs = {"x": ("float32", ("seq", 3)), "attention_mask": ("int64", ("seq",))}
    package = write_package(tmp_path, "m", "1", Hidden(), inputs=inputs, dims={"seq": (1, 30)}, batch_max=4)
    assert [(t.shape, t.dims) for t in package.spec.outputs] == [((-1, -1, 3), ("seq", ""))]
