"""Reads inputs for a model from a .npy file, JSON, or an image file."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mesh.tensors import VARIABLE

Array = npt.NDArray[Any]
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # Source: ImageNet's, as pytorchcv's models expect
SPREAD = np.array([0.229, 0.224, 0.225], np.float32)


class InputError(Exception):
    """The input cannot be read; `str()` says what is accepted."""


def read_input(source: str, model: dict[str, Any]) -> Array | dict[str, Array]:
    """An array for the model's one input, or {name: array}. Raises: InputError."""
    try:
        if source.endswith(".npy"):
            array: Array = np.load(source, allow_pickle=False)
            return array
        if Path(source).suffix.lower() in IMAGES:
            return _image(Path(source), model)
        text = sys.stdin.read() if source == "-" else source
        if not text.lstrip().startswith(("[", "{")):
            text = Path(source).read_text()
        parsed = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        wanted = "neither a .npy file, nor JSON (an array, or an object of arrays by name), nor an image"
        raise InputError(f"{source[:80]!r} is {wanted}: {error}") from error
    if not model["inputs"]:
        raise InputError(f"{model['name']} is not ready: nothing is known of its inputs")
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in model["inputs"]}
    try:
        if isinstance(parsed, dict):
            return {name: _array(value, dtypes.get(name)) for name, value in parsed.items()}
        return _array(parsed, model["inputs"][0]["dtype"])
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"the JSON is no rectangular array of numbers, or of strings: {error}") from error


def _array(parsed: Any, dtype: str | None) -> Array:
    """The array of JSON numbers, or strings. Raises: ValueError, TypeError, OverflowError."""
    array: Array = np.asarray(parsed, object)
    elements = array.reshape(-1).tolist()
    if dtype in VARIABLE:
        if not all(isinstance(element, str) for element in elements):
            raise ValueError(f"the input is of {dtype}, and takes JSON strings")
        return array
    if None in elements:
        raise ValueError("null is no number")
    return np.asarray(parsed, dtype)


def _image(file: Path, model: dict[str, Any]) -> Array:
    """One row for an image model: [1, 3, height, width], or [1, 64] grey for the digits models.

    The image has its own size where the model's is open, else the model's.
    """
    from PIL import Image

    if not model["inputs"]:
        raise InputError(f"{model['name']} is not ready: nothing is known of its inputs")
    spec = model["inputs"][0]
    with Image.open(file) as picture:
        if spec["shape"][1:] == [64]:
            grey = np.asarray(picture.convert("L").resize((8, 8)), np.float32)
            return (grey / 255.0 * 16.0).reshape(1, 64)
        if len(spec["shape"]) != 4 or spec["shape"][1] != 3:
            raise InputError(f"{model['name']} takes no images: its input {spec['name']} has shape {spec['shape']}")
        own = picture.height, picture.width  # where the model takes any size
        height, width = (size if extent == -1 else extent for extent, size in zip(spec["shape"][2:], own, strict=True))
        colour = np.asarray(picture.convert("RGB").resize((width, height)), np.float32) / 255.0
    return np.ascontiguousarray(((colour - MEAN) / SPREAD).transpose(2, 0, 1)[np.newaxis])
