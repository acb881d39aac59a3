"""Reads inputs for a model from a .npy file, JSON, or an image file."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
        raise InputError(f"{source[:80]!r} is neither a .npy file, a JSON array nor an image: {error}") from error
    if not model["inputs"]:
        raise InputError(f"{model['name']} is not ready: nothing is known of its inputs")
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in model["inputs"]}
    try:
        if isinstance(parsed, dict):
            return {name: np.asarray(value, dtypes.get(name)) for name, value in parsed.items()}
        if None in np.asarray(parsed, object).reshape(-1).tolist():
            raise ValueError("null is no number")
        return np.asarray(parsed, model["inputs"][0]["dtype"])
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"the JSON is no rectangular array of numbers: {error}") from error


def _image(file: Path, model: dict[str, Any]) -> Array:
    """One row for an image model: [1, 3, height, width], or [1, 64] grey for the digits models."""
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
        height, width = spec["shape"][2:]
        colour = np.asarray(picture.convert("RGB").resize((width, height)), np.float32) / 255.0
    return np.ascontiguousarray(((colour - MEAN) / SPREAD).transpose(2, 0, 1)[np.newaxis])
