"""A deep copy of a module that is whole: functions in it which reach the module reach the copy, not the module.

copy.deepcopy shares functions, and with them whatever they close over.
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
    whole: nn.Module = _Rebinding(memo).mended(copied)
    return whole


def _parameter(value: nn.Parameter) -> nn.Parameter:
    """A copy, of the same class, that is not made by its constructor: it may take anything."""
    made: Any = torch.Tensor._make_subclass(type(value), value.detach().clone(), value.requires_grad)
    vars(made).update(vars(value))
    kept: nn.Parameter = made
    return kept


class _Rebinding:
    """Goes through a deep copy and puts functions of its own in the place of those that reach what was copied."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo  # {id of what was copied: its copy}, as copy.deepcopy keeps it
        self._parts = {known for known, copied in memo.items() if known not in (id(memo), id(copied))}
        self._ours: set[int] = set()  # ids of copies: nothing else is written to
        self._known = -1  # how many of the memo are in it
        self._done: dict[int, tuple[Any, Any]] = {}  # {id: (what was found, what is in its place)}
        self._cells: dict[int, tuple[types.CellType, types.CellType]] = {}  # {id: (cell, the copy's)}

    def mended(self, value: Any) -> Any:
        """What is to be in its place."""
        if not gc.is_tracked(value):  # numbers, text, and containers of nothing else
            return value
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
        """One of the copy's own, if it reaches anything that has a copy."""
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
        self._done[id(function)] = (function, made)  # for one that calls itself
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
        """Whether what has a global name has a copy, or is a function that reaches such."""
        return id(value) in self._parts or (type(value) is types.FunctionType and self._reaches(value))

    def _cell(self, cell: types.CellType) -> types.CellType:
        """The copy's, to be filled: functions that share one share it again. The same, if it reaches nothing copied."""
        if _is_empty(cell) or not self._reaches(cell.cell_contents):
            return cell
        return self._cells.setdefault(id(cell), (cell, types.CellType()))[1]

    def _reaches(self, value: Any) -> bool:
        """Whether anything that it reaches has a copy, by global names of functions, too."""
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
        """A copy, if it reaches what was copied, and itself if not: others that share it are to share it still.

        What cannot be copied stays as it is, too: whether that matters is seen where the module itself is run.
        """
        if not self._reaches(value):
            return value
        known = dict(self._memo)
        try:
            value = copy.deepcopy(value, self._memo)
        except Exception:  # whatever the author's objects do: it holds a lock, or a file
            self._memo.clear()  # of copies that were only begun
            self._memo.update(known)
        return self.mended(value)

    def _is_ours(self, value: Any) -> bool:
        if len(self._memo) != self._known:
            self._known = len(self._memo)
            self._ours = {id(copied) for known, copied in self._memo.items() if known != id(self._memo)}
        return id(value) in self._ours


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell  # which it is not
    except ValueError:
        return True


def _named(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What the author's function may use by global names: modules, their data, and functions of his."""
    if is_authors(function):
        known = function.__globals__
        yield from ((name, known[name]) for name in names_in(function.__code__) if name in known)


def _same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))
