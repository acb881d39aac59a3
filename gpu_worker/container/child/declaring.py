"""Inputs and outputs as operators and code declare them: names, texts, tuples, dicts. Needs the standard library alone.

A spec is {"name", "dtype", "shape"}; the shape begins with -1, the batch, and then has a positive number, the name of
an open dimension, or -1 for an extent that is an output's own. Where only a name was given, dtype and shape are None:
a sample has to show them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Spec = dict[str, Any]
DTYPES = (
    "float32", "float64", "float16", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
)  # fmt: skip
VARIABLE = ("string", "bytes")  # their elements have lengths of their own
TYPES = {"str": "string", "float": "float64", "int": "int64", "bool_": "bool", "bytes_": "bytes", "str_": "string"}
TEXT = re.compile(r"([A-Za-z0-9_.-]{1,64})(?::([a-z0-9]+):(-1(?:,(?:\d+|-1|[A-Za-z_]\w*))*))?", re.ASCII)
EXAMPLE = "NAME:DTYPE:SHAPE with the batch first, as in x:float32:-1,64"


class NotDeclared(Exception):
    """A declaration cannot be read; `str()` says which, and how one is written."""


def specs_of(given: Any, whose: str) -> list[Spec]:
    """Returns the specs that a list, or a dict by name, declares. Raises: NotDeclared."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        return [spec_of(_of_dict(name, about), whose) for name, about in given.items()]
    try:
        return [spec_of(one, whose) for one in given]
    except TypeError:
        raise NotDeclared(f"{whose}: a list of tensors is due, each {EXAMPLE}; it is a {_kind(given)}") from None


def spec_of(given: Any, whose: str) -> Spec:
    """Returns the spec that a text, a tuple (name, dtype, shape), a dict, or an object like these declares.

    Raises: NotDeclared.
    """
    if isinstance(given, str):
        return _of_text(given, whose)
    if isinstance(given, Mapping):
        name, dtype, shape = (given.get(key) for key in ("name", "dtype", "shape"))
    elif isinstance(given, (tuple, list)) and 1 <= len(given) <= 3:
        name, dtype, shape = (*given, None, None)[:3]
    elif all(hasattr(given, key) for key in ("name", "dtype", "shape")):
        name, dtype, shape = given.name, given.dtype, given.shape
    else:
        raise NotDeclared(f"{whose}: each is {EXAMPLE}, or a tuple or dict of these; one is a {_kind(given)}")
    if not isinstance(name, str) or (dtype is None) != (shape is None):
        raise NotDeclared(f"{whose}: each is {EXAMPLE}, or a tuple or dict of these; got {str(given)[:100]!r}")
    if dtype is None:
        return {"name": name, "dtype": None, "shape": None}
    return {"name": name, "dtype": _dtype(dtype), "shape": _shape(shape, f"{whose}: {name}")}


def dims_of(given: Any, whose: str) -> dict[str, list[int]]:
    """Returns {name: [least, most]}; a number alone is the most. Raises: NotDeclared."""
    found = {}
    for name, about in _items(given, whose, '{"seq": (1, 512)}'):
        extents = [1, about] if isinstance(about, int) else list(about) if isinstance(about, (tuple, list)) else []
        if len(extents) != 2 or not all(type(extent) is int for extent in extents):
            raise NotDeclared(f"{whose}: {name} has a least and a greatest extent, as (1, 512); got {about!r}")
        found[name] = extents
    return found


def named(given: Any, whose: str, example: str, kinds: Any) -> dict[str, Any]:
    """Returns {name: value}, whose values are of these types. Raises: NotDeclared."""
    found = dict(_items(given, whose, example))
    wrong = next((name for name, value in found.items() if not isinstance(value, kinds)), None)
    if wrong is not None:
        raise NotDeclared(f"{whose}: it is written {example}; {wrong!r} has {found[wrong]!r}")
    return found


def is_open(spec: Spec) -> bool:
    """Returns whether an extent after the batch is open."""
    return any(not isinstance(extent, int) or extent == -1 for extent in spec["shape"][1:])


def _items(given: Any, whose: str, example: str) -> list[Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise NotDeclared(f"{whose}: it is written {example}; it is a {_kind(given)}")
    return list(given.items())


def _of_text(text: str, whose: str) -> Spec:
    found = TEXT.fullmatch(text)
    if found is None:
        raise NotDeclared(f"{whose} takes {EXAMPLE}, or x:int64:-1,seq for an open dimension; got {text!r}")
    name, dtype, shape = found.groups()
    if dtype is None:
        return {"name": name, "dtype": None, "shape": None}
    return {"name": name, "dtype": dtype, "shape": [_extent(extent) for extent in shape.split(",")]}


def _of_dict(name: Any, about: Any) -> Any:
    """A tensor of {name: (dtype, shape)}; its shape may leave the batch out, as that of `write_package` does."""
    if isinstance(about, Mapping):
        return {"name": name, **about}
    if isinstance(about, (tuple, list)) and len(about) == 2 and isinstance(about[1], (tuple, list)):
        dtype, shape = about
        return (name, dtype, shape if shape and shape[0] in (-1, None) else (-1, *shape))
    return (name, about)  # spec_of says what is wrong with it


def _shape(shape: Any, whose: str) -> list[Any]:
    try:
        extents = [-1 if extent is None else extent for extent in shape]
    except TypeError:
        raise NotDeclared(f"{whose} has a shape, as (-1, 64); got {shape!r}") from None
    return [extent if isinstance(extent, str) else _whole(extent, whose, shape) for extent in extents]


def _whole(extent: Any, whose: str, shape: Any) -> int:
    try:
        return int(extent.__index__())
    except AttributeError:
        raise NotDeclared(f"{whose}: its shape holds numbers and names of dimensions; got {shape!r}") from None


def _extent(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text


def _dtype(dtype: Any) -> str:
    """The dtype's name: of a text, a numpy dtype, or a type as `str` or `numpy.float32`."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    name = name if isinstance(name, str) else str(dtype)
    return TYPES.get(name, name)


def _kind(value: object | None) -> str:
    return type(value).__name__
