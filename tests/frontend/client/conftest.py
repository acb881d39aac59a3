"""Both clients, and a frontend that answers as a test says."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from frontend.client import connection
from frontend.client.async_client import AsyncClient
from frontend.client.client import Client
from tests.frontend.client.fakes import FakeFrontend, usual


class OnALoop:
    """An AsyncClient with the calls of a Client, so that the same tests run with both."""

    def __init__(self, address: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(address, options))

    async def _make(self, address: Any, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(address, **options)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._runner.run(getattr(self._client, name)(*args, **kwargs))

    def infer_many(self, requests: Any, **options: Any) -> list[Any]:
        async def all_at_once() -> list[Any]:
            calls = [self._client.infer(model, x, **options) for model, x in requests]
            return await asyncio.gather(*calls, return_exceptions=True)

        return self._runner.run(all_at_once())

    def close(self) -> None:
        self._runner.run(self._close())

    async def _close(self) -> None:
        self._client.close()

    def __enter__(self) -> "OnALoop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, OnALoop], ids=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest) -> Any:
    """The class of either client."""
    return request.param


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """A request without an answer is given up 60 ms after its deadline."""
    monkeypatch.setattr(connection, "GRACE_S", 0.06)
    return 0.06


@pytest.fixture
def serving(make: Any) -> Iterator[Callable[..., tuple[FakeFrontend, Any]]]:
    """Opens a frontend with a given behaviour, and a client for it; closes both at the end."""
    opened: list[Any] = []

    def open_(behaviour: Any = usual) -> tuple[FakeFrontend, Any]:
        opened.append(FakeFrontend(behaviour).__enter__())
        opened.append(make(opened[-1].address).__enter__())
        return opened[0], opened[1]

    yield open_
    for thing in reversed(opened):
        thing.__exit__()
