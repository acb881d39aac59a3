"""A deep copy of a module that is whole: functions in it which reach the module reach the copy, not the module.

copy.deepcopy shares functions, and with them whatever they close over.
"""

import copy
import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gpu_worker.importing.reaching import is_authors, names_in, reached

COMPILED = "_torchdynamo_orig_callable"  # of what torch.compile makes of a function: the function


def whole_copy(module: nn.Module) -> nn.Module:
    """The copy. Raises: whatever the author's objects raise when they are copied."""
    memo: dict[int, Any] = {}
    for value in reached(module):
        if isinstance(value, torch.jit.ScriptFunction):  # cannot be copied, and cannot be changed either
            memo[id(value)] = value
        elif isinstance(value, nn.Parameter) and type(value) is not nn.Parameter:
            memo[id(value)] = _parameter(value)
        elif isinstance(value, torch.Tensor) and not value.is_leaf:  # torch copies none whose gradient it could take
            memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(module, memo)
    whole: nn.Module = _Rebinding(module, memo).mended(copied)
    return whole


def _parameter(value: nn.Parameter) -> nn.Parameter:
    """A copy, of the same class, that is not made by its constructor: it may take anything."""
    made: Any = torch.Tensor._make_subclass(type(value), value.detach().clone(), value.requires_grad)
    vars(made).update(vars(value))
    kept: nn.Parameter = made
    return kept


class _Rebinding:
    """Goes through a deep copy and puts functions of its own in the place of those that reach what was copied."""

    def __init__(self, module: nn.Module, memo: dict[int, Any]) -> None:
        self._parts = {id(part) for part in nn.Module.modules(module)}
        self._memo = memo  # {id of what was copied: its copy}, as copy.deepcopy keeps it
        self._ours: set[int] = set()  # ids of copies: nothing else is written to
        self._known = -1  # how many of the memo are in it
        self._done: dict[int, tuple[Any, Any]] = {}  # {id: (what was found, what is in its place)}
        self._cells: dict[int, tuple[types.CellType, types.CellType]] = {}  # {id: (cell, the copy's)}

    def mended(self, value: Any) -> Any:
        """What is to be in its place."""
        if id(value) not in self._done:
            self._done[id(value)] = (value, value)  # for what reaches itself
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
        """One of the copy's own, if it reaches anything that has a copy, or that calls could change."""
        if COMPILED in vars(function):
            written = getattr(function, COMPILED)
            found = self._copied(written)
            return function if found is written else found
        known = self._globals(function)
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__,
            {**function.__globals__, **known} if known else function.__globals__,
            function.__name__,
            None,
            cells or None,
        )
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        made.__annotations__ = function.__annotations__
        self._done[id(function)] = (function, made)  # for one that calls itself
        changed = bool(known)
        for theirs, ours in zip(function.__closure__ or (), cells, strict=True):
            changed |= self._filled(theirs, ours, function, made)
        made.__defaults__ = self._copied(function.__defaults__)
        if function.__kwdefaults__ is not None:
            made.__kwdefaults__ = {name: self._copied(value) for name, value in function.__kwdefaults__.items()}
            changed |= not _same(made.__kwdefaults__.values(), function.__kwdefaults__.values())
        vars(made).update({name: self._copied(value) for name, value in vars(function).items()})
        changed |= made.__defaults__ is not function.__defaults__
        changed |= not _same(vars(made).values(), vars(function).values())
        return made if changed else function

    def _globals(self, function: types.FunctionType) -> dict[str, Any]:
        """Global names by which it reaches what has a copy: {name: the copy}."""
        found = {}
        for name in names_in(function.__code__) if is_authors(function) else ():
            value = function.__globals__.get(name)
            new = self.mended(value) if isinstance(value, types.FunctionType) else self._memo.get(id(value), value)
            if new is not value:
                found[name] = new
        return found

    def _cell(self, cell: types.CellType) -> types.CellType:
        """The copy's: functions that share one share it again."""
        return self._cells.setdefault(id(cell), (cell, types.CellType()))[1]

    def _filled(self, theirs: types.CellType, ours: types.CellType, function: Any, made: Any) -> bool:
        """The copy's cell holds what it must. Returns whether that is another thing."""
        try:
            value = theirs.cell_contents
        except ValueError:  # it is empty
            return False
        try:
            new = ours.cell_contents  # filled for another function
        except ValueError:
            new = ours.cell_contents = self._copied(value)
        return new is not value and not (value is function and new is made)

    def _copied(self, value: Any) -> Any:
        """A copy, if it is no constant: it may be part of what was copied. What cannot be copied stays as it is.

        Raises: whatever comes of copying, for what cannot be copied and reaches a part of the module.
        """
        try:
            copied = copy.deepcopy(value, self._memo)
        except Exception:  # whatever the author's objects do: a Python module, a lock, a file
            if any(id(found) in self._parts for found in reached(value)):
                raise
            return value
        return self.mended(copied)

    def _is_ours(self, value: Any) -> bool:
        if len(self._memo) != self._known:
            self._known = len(self._memo)
            self._ours = {id(copied) for known, copied in self._memo.items() if known != id(self._memo)}
        return id(value) in self._ours


def _same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))
