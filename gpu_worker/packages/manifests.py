"""Finds all faults of a map that should be a struct; msgspec itself stops at the first one. Pure."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, get_args, get_origin

import msgspec

from mesh.decoder_faults import NAME_SHOWN, read_fault

FAULTS_MAX = 50  # told at once


def faults_of(value: Any, kind: Any, path: str = "") -> list[str]:
    """Returns one sentence for each fault, starting with the field, of the first few; none if `value` fits `kind`."""
    return list(islice(_faults(value, kind, path), FAULTS_MAX))


def sound(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns the fields that fit, converted; of a list of structs, the items that fit."""
    kept = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in value:
            continue
        found = value[field.encode_name]
        item = _item(field.type)
        if isinstance(found, list) and _is_struct(item):
            kept[field.encode_name] = [msgspec.convert(entry, item) for entry in found if not faults_of(entry, item)]
        elif not faults_of(found, field.type):
            kept[field.encode_name] = msgspec.convert(found, field.type)
    return kept


def _faults(value: Any, kind: Any, path: str) -> Iterator[str]:
    item = _item(kind)
    if _is_struct(kind) and isinstance(value, dict):
        yield from _struct_faults(value, kind, path)
    elif isinstance(value, list) and _is_struct(item):
        faults = [fault for i, entry in enumerate(value) for fault in _faults(entry, item, f"{path}[{i}]")]
        yield from faults or _own_fault(value, kind, path)  # the list itself may have too few or too many items
    else:
        yield from _own_fault(value, kind, path)


def _struct_faults(value: dict[str, Any], kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    dot = f"{path}." if path else ""
    for name in value:
        if name not in known:
            yield f"{dot}{name[:NAME_SHOWN]}: there is no such field; the fields are {', '.join(known)}"
    for name, field in known.items():
        if name in value:
            yield from _faults(value[name], field.type, dot + name)
        elif field.required:
            yield f"{dot}{name}: is missing"


def _own_fault(value: Any, kind: Any, path: str) -> Iterator[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault = read_fault(error, {})
        yield f"{path}{fault.path}: {fault.text}; got {str(value)[:60]!r}"


def _item(kind: Any) -> Any:
    """Returns the item type of a list type; None if it is no list."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind)[0] if get_origin(kind) is list else None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
