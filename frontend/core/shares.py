"""What one client may have of a limit that all share, so that there is always room for others. Pure.

One client may have SHARE times what is free. So a client alone may have SHARE / (SHARE + 1) of the whole, and n greedy
ones SHARE / (n SHARE + 1) each; who has less than the greedy ones always finds room. A limit so small that a share of
it is less than one still lets one in.

Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions
on Networking 6(2), 1998.
"""

SHARE = 4


def fits(held: int, more: int, held_by_all: int, most: int) -> bool:
    """Whether a client that holds `held` of `most` may hold `more`, where all clients together hold `held_by_all`."""
    return held_by_all + more <= most and held < SHARE * (most - held_by_all)


def fit_all(held_by_all: int, most: int) -> bool:
    """Whether so little is held by all together that no client can have more than its share. Quick."""
    return held_by_all * (SHARE + 1) < SHARE * most


class ClientShare:
    """What one client holds."""

    __slots__ = ("bytes", "calls")

    def __init__(self, calls: int = 0) -> None:
        self.calls = calls
        self.bytes = 0


class Shares:
    """What each client holds, by the number that tells clients apart."""

    def __init__(self) -> None:
        self._held: dict[int, ClientShare] = {}  # without those that hold nothing

    def of(self, asker: int) -> ClientShare:
        """What this client holds; not to be changed."""
        return self._held.get(asker) or ClientShare()

    def is_fair(self, asker: int, most: int) -> bool:
        """Whether with one more call the client has no more than an equal part of so many."""
        share = self._held.get(asker)
        clients = len(self._held) + (share is None)
        return ((share.calls if share is not None else 0) + 1) * clients <= most

    def opened(self, asker: int) -> None:
        """One more call of the client is open."""
        share = self._held.get(asker)
        if share is None:
            self._held[asker] = ClientShare(1)
        else:
            share.calls += 1

    def ended(self, asker: int, size: int) -> None:
        """One call of the client has ended, which held so many bytes."""
        share = self._held[asker]
        share.calls -= 1
        share.bytes -= size
        if not share.calls:
            del self._held[asker]

    def add_bytes(self, asker: int, size: int) -> None:
        """The client's open calls hold more bytes, or fewer."""
        self._held[asker].bytes += size

    def check(self, calls: dict[int, tuple[int, int]]) -> None:
        """Asserts that each client holds so many (calls, bytes)."""
        assert calls == {asker: (share.calls, share.bytes) for asker, share in self._held.items()}
