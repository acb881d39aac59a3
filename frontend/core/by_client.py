"""What is open, found by the connection that asked for it and the id that it has there. Pure."""

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class OpenByClient(Generic[T]):
    """{connection: {id: what is open}}. All that one connection has open is found without looking at the others'."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, dict[int | str, T]] = {}  # no connection that has nothing open
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, client: Hashable, id_: int | str) -> T | None:
        """What is open under this id; None if nothing is."""
        opened = self._clients.get(client)
        return None if opened is None else opened.get(id_)

    def add(self, client: Hashable, id_: int | str, item: T) -> None:
        """It is open. The id must not be in use on the connection."""
        opened = self._clients.get(client)
        if opened is None:
            self._clients[client] = {id_: item}
        else:
            assert id_ not in opened
            opened[id_] = item
        self._count += 1

    def remove(self, client: Hashable, id_: int | str) -> None:
        """It is open no more. Raises: KeyError, if it was not."""
        opened = self._clients[client]
        del opened[id_]
        if not opened:
            del self._clients[client]
        self._count -= 1

    def of(self, client: Hashable) -> list[T]:
        """All that this connection has open, oldest first."""
        return list(self._clients.get(client, {}).values())

    def all(self) -> list[T]:
        """All that is open, that of one connection oldest first."""
        return [item for opened in self._clients.values() for item in opened.values()]

    def check(self) -> None:
        """Asserts every invariant."""
        assert all(self._clients.values())
        assert self._count == sum(map(len, self._clients.values()))
