"""Coroutines as tests: each runs on a loop of its own, ends some time, and leaves no task and no fault behind."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

LIMIT_S = 120.0  # nothing takes so long but what will never end


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test function that runs the coroutine on a uvloop loop, as production does."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_watched(test(*args, **kwargs)))

    return run


async def _watched(test: Coroutine[Any, Any, None]) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with asyncio.timeout(LIMIT_S):
        await test
    assert faults == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Told:
    """A callback that keeps what it is told, in order; `count` waits for it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = asyncio.Event()

    def __call__(self, *args: Any) -> None:
        self.items.append(args[0] if len(args) == 1 else args)
        self._more.set()

    async def count(self, number: int) -> list[Any]:
        """All that was told, once it is `number` things or more."""
        return await self.until(lambda items: len(items) >= number)

    async def until(self, enough: Callable[[list[Any]], Any]) -> list[Any]:
        """All that was told, once it is enough."""
        while not enough(self.items):
            self._more.clear()
            await self._more.wait()
        return self.items
