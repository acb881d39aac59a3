"""Copies a module deeply, including functions: those that reach the module reach the copy instead.

copy.deepcopy shares functions, and with them everything that they close over.
"""

import copy
import functools
import gc
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from gpu_worker.packages.importing.reaching import is_authors, names_in, reached

COMPILED = "_torchdynamo_orig_callable"  # attribute in which torch.compile keeps the original function


def whole_copy(module: nn.Module) -> nn.Module:
    """Returns the copy. Raises: whatever the author's objects raise when they are copied."""
    memo: dict[int, Any] = {}
    for value in reached(module):
        if isinstance(value, torch.jit.ScriptFunction):  # it can be neither copied nor changed
            memo[id(value)] = value
        elif isinstance(value, nn.Parameter) and type(value) is not nn.Parameter:
            memo[id(value)] = _parameter(value)
        # torch refuses to copy tensors that are part of a gradient's computation
        elif isinstance(value, torch.Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(module, memo)
    whole: nn.Module = _Rebinding(memo).mended(copied)
    return whole


def _parameter(value: nn.Parameter) -> nn.Parameter:
    """Returns a copy of the same class, made without the constructor, which may require any arguments."""
    made: Any = torch.Tensor._make_subclass(type(value), value.detach().clone(), value.requires_grad)
    vars(made).update(vars(value))
    kept: nn.Parameter = made
    return kept


class _Rebinding:
    """Walks a deep copy and replaces functions that reach the original by functions that reach the copy."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo  # {id of an original: its copy}, as copy.deepcopy keeps it
        self._parts = {known for known, copied in memo.items() if known not in (id(memo), id(copied))}
        self._ours: set[int] = set()  # ids of copies; only these are written to
        self._known = -1  # length of the memo when _ours was made
        self._done: dict[int, tuple[Any, Any]] = {}  # {id: (what was found, what replaces it)}
        self._cells: dict[int, tuple[types.CellType, types.CellType]] = {}  # {id: (original cell, cell of the copy)}

    def mended(self, value: Any) -> Any:
        """Returns the replacement of the value; the value itself if nothing in it changes."""
        if not gc.is_tracked(value):  # numbers, text, and containers of only those
            return value
        if id(value) not in self._done:
            self._done[id(value)] = (value, value)  # ends the recursion of objects that reach themselves
            self._done[id(value)] = (value, self._mended(value))
        return self._done[id(value)][1]

    def _mended(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            function = self.mended(value.__func__)
            return value if function is value.__func__ else types.MethodType(function, value.__self__)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            mended = (self.mended(value.func), self.mended(value.args), self._entries(dict(value.keywords)))
            same = mended[0] is parts[0] and mended[1] is parts[1] and _same(mended[2].values(), parts[2].values())
            return value if same else type(value)(mended[0], *mended[1], **mended[2])
        if isinstance(value, tuple):
            entries = [self.mended(entry) for entry in value]
            if _same(entries, value):
                return value
            return type(value)._make(entries) if hasattr(value, "_make") else tuple(entries)
        if self._is_ours(value):
            self._fill(value)
        return value

    def _fill(self, value: Any) -> None:
        if isinstance(value, dict):
            self._entries(value)
        elif isinstance(value, (list, deque)):
            for i, entry in enumerate(value):
                value[i] = self.mended(entry)
        is_torch_s = type(value).__module__.startswith("torch.") and not isinstance(value, nn.Module)
        if not is_torch_s and not isinstance(value, torch.Tensor) and hasattr(value, "__dict__"):
            self._entries(vars(value))

    def _entries(self, held: dict[Any, Any]) -> dict[Any, Any]:
        for key, entry in list(held.items()):
            new = self.mended(entry)
            if new is not entry:
                held[key] = new
        return held

    def _function(self, function: types.FunctionType) -> Any:
        """Returns a function of the copy's own if the function reaches anything that has a copy."""
        if not self._reaches(function):
            return function
        if COMPILED in vars(function):
            return self._copied(getattr(function, COMPILED))
        known = [(name, value) for name, value in _named(function) if self._is_named_part(value)]
        made = types.FunctionType(
            function.__code__,
            dict(function.__globals__) if known else function.__globals__,
            function.__name__,
            None,
            tuple(self._cell(cell) for cell in function.__closure__ or ()) or None,
        )
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        made.__annotations__ = function.__annotations__
        self._done[id(function)] = (function, made)  # for functions that call themselves
        for name, value in known:
            made.__globals__[name] = self._copied(value)
        for theirs, ours in zip(function.__closure__ or (), made.__closure__ or (), strict=True):
            if ours is not theirs and _is_empty(ours):
                ours.cell_contents = self._copied(theirs.cell_contents)
        made.__defaults__ = self._copied(function.__defaults__)
        if function.__kwdefaults__ is not None:
            made.__kwdefaults__ = {name: self._copied(value) for name, value in function.__kwdefaults__.items()}
        vars(made).update({name: self._copied(value) for name, value in vars(function).items()})
        return made

    def _is_named_part(self, value: Any) -> bool:
        """Returns whether a global name's value has a copy, or is a function that reaches such a value."""
        return id(value) in self._parts or (type(value) is types.FunctionType and self._reaches(value))

    def _cell(self, cell: types.CellType) -> types.CellType:
        """Returns the copy's cell, still to be filled; the same cell if it reaches nothing that was copied.

        Functions that share a cell share the new one too.
        """
        if _is_empty(cell) or not self._reaches(cell.cell_contents):
            return cell
        return self._cells.setdefault(id(cell), (cell, types.CellType()))[1]

    def _reaches(self, value: Any) -> bool:
        """Returns whether the value reaches anything that has a copy, also through global names of functions."""
        waiting, seen = [value], set[int]()
        while waiting:
            for found in reached(waiting.pop()):
                if id(found) in self._parts:
                    return True
                if type(found) is types.FunctionType and id(found) not in seen:
                    seen.add(id(found))
                    named = (value for _, value in _named(found))
                    waiting += [v for v in named if id(v) in self._parts or type(v) is types.FunctionType]
        return False

    def _copied(self, value: Any) -> Any:
        """Returns a copy if the value reaches what was copied, else the value itself, which others may share.

        A value that cannot be copied stays as it is: running the module itself shows whether that matters.
        """
        if not self._reaches(value):
            return value
        known = dict(self._memo)
        try:
            value = copy.deepcopy(value, self._memo)
        except Exception:  # the author's objects may raise anything: one may hold a lock, or a file
            self._memo.clear()  # drop copies that were only begun
            self._memo.update(known)
        return self.mended(value)

    def _is_ours(self, value: Any) -> bool:
        if len(self._memo) != self._known:
            self._known = len(self._memo)
            self._ours = {id(copied) for known, copied in self._memo.items() if known != id(self._memo)}
        return id(value) in self._ours


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell  # it is False; reading an empty cell raises
    except ValueError:
        return True


def _named(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields what the author's function may use by global names: modules, their data, and the author's functions."""
    if is_authors(function):
        known = function.__globals__
        yield from ((name, known[name]) for name in names_in(function.__code__) if name in known)


def _same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))
