"""Structures of outputs, as exported programs store them: read as data, of Python's own containers alone. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

PROTOCOL = 1
LISTS = {"builtins.list": list, "builtins.tuple": tuple}
MAPS = ("builtins.dict", "collections.OrderedDict")
DEPTH_MAX = 64


class Structure(msgspec.Struct):
    """A container of structures, or a leaf. Source: torch/utils/_pytree.py, protocol 1."""

    type: str | None  # name of the container; None: a leaf
    context: str | None  # of a map, the JSON list of its keys
    children_spec: list["Structure"]


def read_structure(text: str) -> Structure:
    """Returns the structure of this JSON text. Raises: ValueError with a sentence for people."""
    try:
        protocol, found = msgspec.json.decode(text, type=tuple[int, Structure])
        _check(found, 0)
    except (msgspec.MsgspecError, RecursionError, TypeError) as error:
        raise ValueError(f"the structure of its outputs cannot be read: {error}") from None
    if protocol != PROTOCOL:
        raise ValueError(f"the structure of its outputs is of protocol {protocol}; {PROTOCOL} is read")
    return found


def filled(structure: Structure, leaves: Sequence[Any]) -> Any:
    """Returns the structure with these leaves, as many as it has, in their order. Raises: ValueError."""
    rest = iter(leaves)
    made = _filled(structure, rest)
    if next(rest, rest) is not rest:
        raise ValueError("the program has more outputs than their structure has places")
    return made


def _filled(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure.type is None:
        try:
            return next(leaves)
        except StopIteration:
            raise ValueError("the program has fewer outputs than their structure has places") from None
    children = [_filled(child, leaves) for child in structure.children_spec]
    if structure.type in LISTS:
        return LISTS[structure.type](children)
    return dict(zip(_keys(structure), children, strict=True))


def _check(structure: Structure, depth: int) -> None:
    """Raises: ValueError unless the structure is of known containers."""
    if depth > DEPTH_MAX:
        raise ValueError(f"the structure of its outputs is more than {DEPTH_MAX} deep")
    if structure.type in MAPS and len(_keys(structure)) != len(structure.children_spec):
        raise ValueError("the structure of its outputs has a map with more keys than values, or fewer")
    if structure.type is not None and structure.type not in (*LISTS, *MAPS):
        raise ValueError(
            f"the structure of its outputs has a {structure.type[:80]!r}: return tensors in tuples, lists and dicts"
        )
    for child in structure.children_spec:
        _check(child, depth + 1)


def _keys(structure: Structure) -> list[str | int]:
    return msgspec.json.decode(structure.context or "", type=list[str | int])
