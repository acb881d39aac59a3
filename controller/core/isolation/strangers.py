"""Clients of which nothing good is known, while one new client after the other ends processes. Pure.

Whoever changes its connection each time is a new client each time, and no quarantine of a client can stop it. Clients
that were served since the first process ended are known, and are let in; all others are refused for pauses that grow.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.failures import DOUBLINGS_MAX
from controller.core.queues import Client

STRIKES_MIN = 15  # within CALM_S, before strangers are refused; each client counts once
STRIKE, DOUBTFUL_STRIKE = 3, 1  # it died again with the same request, or client; or once, which may be chance
STRIKERS_MAX = 256  # remembered; the one that struck longest ago is forgotten for another
KNOWN_MAX = 4096  # the one that was served longest ago is forgotten for another
CALM_S = 180.0  # an ended process is remembered for so long, as of a suspect
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0  # first and longest pause; each is twice the last


@dataclass(slots=True)
class Strangers:
    """Who is known to one version, and until when others are refused."""

    refused_until_s: float = 0.0
    _strikers: OrderedDict[Client, tuple[float, int]] = field(default_factory=OrderedDict)  # {client: (when, strikes)}
    _known: OrderedDict[Client, None] = field(default_factory=OrderedDict)
    _pauses: int = 0

    def __bool__(self) -> bool:
        """Whether some client ended a process lately."""
        return bool(self._strikers)

    def struck(self, client: Client, now: float, *, surely: bool) -> bool:
        """A request of the client ended a process, alone. Returns whether strangers are refused from now on."""
        self._known.pop(client, None)
        self._strikers.pop(client, None)
        self._strikers[client] = now, STRIKE if surely else DOUBTFUL_STRIKE
        if len(self._strikers) > STRIKERS_MAX:
            self._strikers.popitem(last=False)
        if sum(strikes for _, strikes in self._strikers.values()) < STRIKES_MIN:
            return False
        self.refused_until_s = now + min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(self._pauses, DOUBLINGS_MAX))
        self._pauses = min(self._pauses + 1, 16)
        return True

    def served(self, clients: Iterable[Client]) -> None:
        """A batch of these clients ended well."""
        for client in clients:
            if client not in self._strikers:
                self._known[client] = None
                self._known.move_to_end(client)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def refuses(self, client: Client, now: float) -> bool:
        """Whether the client is refused because nothing is known of it. Nobody is of whom it is not known who asks."""
        return now < self.refused_until_s and bool(client[1]) and client not in self._known

    def forget(self, now: float) -> None:
        """What is over is not remembered."""
        for client in [client for client, (since_s, _) in self._strikers.items() if now >= since_s + CALM_S]:
            del self._strikers[client]
        if not self._strikers:
            self._known.clear()
            self._pauses = 0
