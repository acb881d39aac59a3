"""Finds what a module's Python code reaches: by attributes, containers, closures and global names of functions."""

import gc
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

# packages whose objects are not searched, except torch's modules: they hold no data of the model, or are in use
CLOSED = {
    "torch", "logging", "threading", "queue", "concurrent", "multiprocessing", "asyncio", "contextvars", "weakref",
}  # fmt: skip
LIBRARIES = sys.stdlib_module_names | {"numpy", "torch"}
ENDS = (type, types.ModuleType, types.CodeType, types.FrameType, types.GeneratorType, torch.Tensor)
# exactly these types: writing to a subclass may have any effect
CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


def reached(*roots: Any) -> Iterator[Any]:
    """Yields these objects and every object that they reach, once each.

    The search does not pass through classes, Python modules and global names.
    """
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen or not (gc.is_tracked(value) or type(value) in CONTAINERS):  # numbers, text
            continue
        seen.add(id(value))
        yield value
        kind = type(value)  # not isinstance: it would make a proxy load the object that it stands for
        if kind is types.FunctionType:
            waiting += (*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, vars(value))
        elif _is_open(kind):
            waiting += gc.get_referents(value)


def names_in(code: types.CodeType) -> set[str]:
    """Returns the names in the code, and in functions inside of it, that may be global names."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(names_in(constant) for constant in inner))


def is_authors(function: types.FunctionType) -> bool:
    """Returns whether the function is the author's: not of Python, numpy or torch, and not a wrapper that they make."""
    return not _is_library(str(function.__globals__.get("__name__")))


class ReachableState:
    """What a module holds, and what its functions reach by global names and by attributes of classes.

    Remembers which objects are where, and the values of tensors that are neither parameters nor buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._put_back: list[Callable[[], None]] = []
        named = (*nn.Module.parameters(module), *nn.Module.buffers(module))
        self._seen = {id(tensor) for tensor in named}
        self._see(module)

    def put_back(self) -> None:
        """Everything is back in its place, with its former values."""
        for one in self._put_back:
            one()

    def _see(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            for value in reached(waiting.pop()):
                if id(value) in self._seen:
                    continue
                self._seen.add(id(value))
                self._put_back += _places(value)
                waiting += self._named(value)

    def _named(self, value: Any) -> Iterator[Any]:
        """Yields what the value reaches by names: a function by global names, an object by those of its class."""
        if type(value) is types.FunctionType:
            names = names_in(value.__code__) if is_authors(value) else set()
            modules = [m for n in names if type(m := value.__globals__.get(n)) is types.ModuleType]
            for known in (value.__globals__, *(vars(m) for m in modules if not _is_library(m.__name__))):
                yield from self._of_names(known, names)
        elif not issubclass(type(value), ENDS):
            for kind in type(value).__mro__:
                yield from self._of_class(kind)

    def _of_names(self, known: dict[str, Any], names: Collection[str]) -> Iterator[Any]:
        for name in names:
            self._put_back.append(_entry(known, name))
            found = known.get(name)
            if type(found) in SEEN_BY_NAME or isinstance(found, (nn.Module, torch.Tensor)):
                yield found
            elif isinstance(found, type):
                yield from self._of_class(found)
            elif not _is_in(type(found), LIBRARIES):
                yield found

    def _of_class(self, kind: type) -> Iterator[Any]:
        if id(kind) in self._seen or not kind.__flags__ & HEAP or _is_in(kind, LIBRARIES):
            return
        self._seen.add(id(kind))
        self._put_back.append(_attributes(kind))
        yield from (v for v in vars(kind).values() if isinstance(v, types.FunctionType) or type(v) in CONTAINERS)


SEEN_BY_NAME = (*CONTAINERS, types.FunctionType, types.SimpleNamespace)
HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made in Python, whose attributes can be set
NOTHING = object()


def _is_open(kind: type) -> bool:
    """Returns whether objects of the class are searched."""
    return not issubclass(kind, ENDS) and (issubclass(kind, nn.Module) or not _is_in(kind, CLOSED))


def _is_in(kind: type, packages: Collection[str]) -> bool:
    return str(kind.__module__).partition(".")[0] in packages


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


def _places(value: Any) -> Iterator[Callable[[], None]]:
    """Yields functions that restore the value's contents."""
    if type(value) in CONTAINERS:
        yield _contents(value)
    elif type(value) is types.CellType:
        yield _cell(value)
    elif type(value) is torch.Tensor and value.layout is torch.strided and not (value.is_meta or value.is_inference()):
        yield _values(value)
    elif type(value).__dictoffset__ and type(value) is not types.FunctionType and _is_open(type(value)):
        yield _contents(object.__getattribute__(value, "__dict__"))


def _contents(held: Any) -> Callable[[], None]:
    kept = held.copy()

    def put_back() -> None:
        if isinstance(held, dict):
            if not _same_objects(held, kept):
                held.clear()
                held.update(kept)
        elif len(held) != len(kept) or any(one is not other for one, other in zip(held, kept, strict=False)):
            held.clear()
            held.update(kept) if isinstance(held, set) else held.extend(kept)

    return put_back


def _same_objects(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return list(map(id, one)) == list(map(id, other)) and all(one[key] is other[key] for key in other)


def _values(tensor: torch.Tensor) -> Callable[[], None]:
    kept, written = tensor.detach().clone(), tensor._version

    def put_back() -> None:
        nonlocal written
        if tensor._version != written:
            with torch.no_grad():
                tensor.copy_(kept)
            written = tensor._version

    return put_back


def _cell(cell: types.CellType) -> Callable[[], None]:
    try:
        kept = cell.cell_contents
    except ValueError:  # the cell is empty
        return lambda: None

    def put_back() -> None:
        cell.cell_contents = kept

    return put_back


def _entry(known: dict[str, Any], name: str) -> Callable[[], None]:
    kept = known.get(name, NOTHING)

    def put_back() -> None:
        if kept is NOTHING:
            known.pop(name, None)
        elif known.get(name) is not kept:
            known[name] = kept

    return put_back


def _attributes(kind: type) -> Callable[[], None]:
    kept = dict(vars(kind))

    def put_back() -> None:
        now = dict(vars(kind))
        for name in now.keys() - kept.keys():
            delattr(kind, name)
        for name, value in kept.items():
            if now.get(name, NOTHING) is not value:
                setattr(kind, name, value)

    return put_back
