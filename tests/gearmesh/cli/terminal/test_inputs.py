"""gearmesh/cli/terminal/inputs.py: arrays from files, JSON and images."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gearmesh.cli.terminal.inputs import MEAN, SPREAD, InputError, read_input
from tests.messages import names


def model(*inputs: tuple[str, str, list[int]]) -> dict[str, Any]:
    tensors = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in inputs]
    return {"name": "m", "inputs": tensors}


VECTOR = model(("x", "float32", [-1, 4]))
PAIR = model(("a", "int64", [-1]), ("b", "uint8", [-1, 2]))
DIGITS = model(("image", "float32", [-1, 64]))
PHOTO = model(("image", "float32", [-1, 3, 4, 6]))


def test_a_npy_file_is_taken_as_it_is(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / "x.npy", array)
    np.testing.assert_array_equal(read_input(str(tmp_path / "x.npy"), VECTOR), array, strict=True)


def test_a_npy_file_of_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy"):
        read_input(str(tmp_path / "x.npy"), VECTOR)


@pytest.mark.parametrize(
    ("text", "expected"), [("[1, 2, 3, 4]", [1, 2, 3, 4]), (" [[1.5, 2]]", [[1.5, 2]]), ("\n[]", []), ("[true]", [1])]
)
def test_a_json_array_gets_the_dtype_of_the_models_input(text: str, expected: Any) -> None:
    np.testing.assert_array_equal(read_input(text, VECTOR), np.array(expected, np.float32), strict=True)


def test_a_json_object_names_the_inputs_and_each_gets_its_dtype() -> None:
    found = read_input('{"b": [[1, 2]], "a": [3], "c": [0.5]}', PAIR)
    assert isinstance(found, dict)
    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        "b": ("uint8", [[1, 2]]),
        "a": ("int64", [3]),
        "c": ("float64", [0.5]),  # the frontend refuses it by name
    }


@pytest.mark.parametrize("name", ["x.json", "x.txt", "x"])
def test_json_may_be_in_a_file_or_come_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("[[1, 2]]")
    expected = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(read_input(str(tmp_path / name), VECTOR), expected, strict=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(" [[1, 2]]\n"))
    np.testing.assert_array_equal(read_input("-", VECTOR), expected, strict=True)


@pytest.mark.parametrize(
    "source", ["nowhere.json", "nowhere.npy", "nowhere.png", ".", "", "x" * 5000, "a\0b", "[1, 2", "{"]
)
def test_what_is_no_input_is_refused_with_what_would_do(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        read_input(source, VECTOR)
    assert names(str(raised.value), repr(source[:80]), ".npy", "JSON")


@pytest.mark.parametrize(
    ("text", "taker"),
    [
        ("[[1, 2], [3]]", VECTOR),
        ('["a", "b"]', VECTOR),
        ("[{}]", VECTOR),
        ("[[1], 2]", VECTOR),
        ('{"a": [1, [2]]}', PAIR),
        ('{"a": ["x"]}', PAIR),
        ('{"b": [[1, 256]]}', PAIR),  # too large for a byte
        ('{"b": [[1, -1]]}', PAIR),
        ("[1, 1e999]", PAIR),  # infinity is no integer
        ("[18446744073709551616]", PAIR),
        ("[1, null]", VECTOR),  # null is not NaN
    ],
)
def test_json_that_is_no_array_of_the_models_numbers_is_refused(text: str, taker: dict[str, Any]) -> None:
    json.loads(text)
    with pytest.raises(InputError, match="JSON"):
        read_input(text, taker)


def test_json_nested_a_hundred_thousand_deep_is_refused() -> None:
    with pytest.raises(InputError):
        read_input("[" * 100_000 + "]" * 100_000, VECTOR)


@pytest.mark.parametrize("kind", ["json", "image"])
def test_a_model_that_is_not_ready_has_no_inputs_and_says_so(kind: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="m"):
        read_input("[1, 2]" if kind == "json" else str(tmp_path / "x.png"), model())


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".gif", ".webp"])
def test_an_image_becomes_the_grey_levels_0_to_16_of_the_digits(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"digit{suffix}"
    picture = Image.new("L", (8, 8), 0)
    picture.putpixel((3, 1), 255)  # column 3 of row 1
    picture.save(file, lossless=True)
    found = read_input(str(file), DIGITS)
    expected = np.zeros((1, 64), np.float32)
    expected[0, 8 + 3] = 16.0
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert found.dtype == np.float32


def test_an_image_of_another_size_or_colour_is_brought_to_the_models(tmp_path: Path) -> None:
    Image.new("RGBA", (100, 30), (255, 255, 255, 255)).save(tmp_path / "x.png")
    found = read_input(str(tmp_path / "x.png"), DIGITS)
    np.testing.assert_array_equal(found, np.full((1, 64), 16.0, np.float32), strict=True)


def test_a_photo_becomes_normalized_planes_of_red_green_and_blue(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4), (255, 0, 51))
    picture.save(tmp_path / "x.png")
    found: Any = read_input(str(tmp_path / "x.png"), PHOTO)
    assert found.shape == (1, 3, 4, 6)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    for plane, value, mean, spread in zip(found[0], (1.0, 0.0, 0.2), MEAN, SPREAD, strict=True):
        np.testing.assert_allclose(plane, (value - mean) / spread, rtol=1e-5)


def test_rows_are_the_height_and_columns_the_width(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((5, 1), (255, 255, 255))
    picture.save(tmp_path / "x.png")
    found: Any = read_input(str(tmp_path / "x.png"), PHOTO)
    assert [tuple(place) for place in np.argwhere(found[0, 0] > 0)] == [(1, 5)]


@pytest.mark.parametrize("shape", [[-1, 4], [-1, 1, 8, 8], [-1, 8, 8]])
def test_a_model_that_takes_no_images_says_so(tmp_path: Path, shape: list[int]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"\bm\b.*\bx\b.*\[-1, "):
        read_input(str(tmp_path / "x.png"), model(("x", "float32", shape)))


def test_a_file_that_only_looks_like_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"x\.png"):
        read_input(str(tmp_path / "x.png"), DIGITS)


TEXT = model(("text", "string", [-1]))


@pytest.mark.parametrize("source", ['["good", "a\\u0000"]', '{"text": ["good", "a\\u0000"]}'])
def test_json_strings_are_an_array_of_objects(source: str) -> None:
    found = read_input(source, TEXT)
    array = found["text"] if isinstance(found, dict) else found
    assert array.dtype == object
    assert array.tolist() == ["good", "a\0"]


@pytest.mark.parametrize("source", ["[1, 2]", '["a", null]', '[["a"], "b"]'])
def test_what_is_no_list_of_strings_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="strings"):
        read_input(source, TEXT)


def test_an_image_keeps_its_size_where_the_models_is_open(tmp_path: Path) -> None:
    Image.new("RGB", (31, 17)).save(tmp_path / "x.png")
    for shape, size in (([-1, 3, -1, -1], (17, 31)), ([-1, 3, 8, -1], (8, 31))):
        found = read_input(str(tmp_path / "x.png"), model(("image", "float32", shape)))
        assert isinstance(found, np.ndarray)
        assert found.shape == (1, 3, *size)
