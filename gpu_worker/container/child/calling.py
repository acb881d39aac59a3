"""Calls the function, waits for what it awaits, and drains what it yields."""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Iterator
from itertools import islice
from typing import Any

from .declaring import Spec
from .faults import WrongOutput
from .kinds import takes_dict


class Yielded(list[Any]):
    """What a generator yielded: each item is a row, or a group of rows with the batch first."""


class Caller:
    """The function, called with one array for each input. `specs`: of the inputs."""

    def __init__(self, function: Any, specs: list[Spec]) -> None:
        self.function = function
        self.names = [spec["name"] for spec in specs]
        self._as_dict = takes_dict(function, self.names)
        self._plain = (sys.modules["numpy"].ndarray, dict)  # results that are neither awaited nor drained
        self._loop: Any = None  # asyncio's, from the first time that the function gives something to await

    def __call__(self, arrays: list[Any], rows: int) -> Any:
        """Returns the function's result for so many rows. Raises: WrongOutput, and whatever the function raises.

        One input is given by position; several by name, or as one dict if the function has no such parameters.
        """
        if len(arrays) == 1:
            result = self.function(arrays[0])
        elif self._as_dict:
            result = self.function(dict(zip(self.names, arrays)))
        else:
            result = self.function(**dict(zip(self.names, arrays)))
        if isinstance(result, self._plain):
            return result
        if isinstance(result, Awaitable):
            result = self._await(_awaited(result))
        if isinstance(result, AsyncIterator):
            return self._await(_drained(result, rows))
        return drained(result, rows)

    def _await(self, coroutine: Any) -> Any:
        if self._loop is None or self._loop.is_closed():  # the code may close it
            self._loop = _event_loop()
        return self._loop.run_until_complete(coroutine)


def drained(result: Any, rows: int) -> Any:
    """Returns the result; if it is a generator, or another iterator, what that yields. Raises: WrongOutput."""
    if not isinstance(result, Iterator) or hasattr(result, "__array__"):
        return result
    found = Yielded(islice(result, rows + 1))
    if len(found) > rows:
        if hasattr(result, "close"):
            result.close()
        raise _too_many(rows)
    return found


async def _awaited(result: Any) -> Any:
    return await result


async def _drained(result: AsyncIterator[Any], rows: int) -> Yielded:
    found = Yielded()
    async for item in result:
        found.append(item)
        if len(found) > rows:
            closing: Any | None = getattr(result, "aclose", None)
            if closing is not None:
                await closing()
            raise _too_many(rows)
    return found


def _too_many(rows: int) -> WrongOutput:
    return WrongOutput(
        f"the function yielded more often than {rows} times for {rows} rows: an item is a row, or several"
    )


def _event_loop() -> Any:
    """The loop that the code may have bound things to when it was imported, or a new one."""
    import asyncio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = None
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop
