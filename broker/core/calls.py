"""Calls whose reply comes later: once a version is current, or could not be prepared."""

from dataclasses import dataclass, field

import msgspec

from mesh import wire

CallKey = tuple[str, int]  # (peer, its call number)
Replies = list[tuple[CallKey, wire.CallReply]]


@dataclass(slots=True)
class WaitingCalls:
    """The calls that wait for each version."""

    calls: dict[str, list[CallKey]] = field(default_factory=dict)  # {ref being prepared: in the order of arrival}

    def add(self, ref: str, key: CallKey) -> None:
        """The call waits for this version."""
        self.calls.setdefault(ref, []).append(key)

    def answer(self, ref: str, *, ok: bool, message: str, faults: tuple[str, ...] = (), code: str = "") -> Replies:
        """Returns one reply to each call that waits for this version; none waits afterwards."""
        keys = self.calls.pop(ref, [])
        reply = wire.CallReply(call=0, ok=ok, message=message, faults=faults, code=code)
        return [(key, msgspec.structs.replace(reply, call=key[1])) for key in keys]

    def open(self) -> list[CallKey]:
        """Returns the calls that have not been answered yet."""
        return [key for keys in self.calls.values() for key in keys]

    def of(self, peer: str) -> list[tuple[int, str]]:
        """Returns (call, ref that it waits for) of each call of `peer`."""
        return [(call, ref) for ref, keys in self.calls.items() for who, call in keys if who == peer]

    def drop(self, peer: str) -> None:
        """`peer` is gone: its deployments continue, and their replies go to nobody."""
        for ref, keys in list(self.calls.items()):
            self.calls[ref] = [key for key in keys if key[0] != peer]
