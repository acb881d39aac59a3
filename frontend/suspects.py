"""Who the clients are that controllers suspect, or refuse: they know numbers, and we know connections."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from frontend.core.askers import Asker, Askers
from frontend.core.connections import ClientId
from frontend.core.protocol import Brief, InferRequest
from frontend.reception import Reception
from mesh import wire

SUSPECTS_MAX = 64  # kept for the answer to status; the one of which was told first leaves
KEPT_S = 600.0
IDENTITY_LENGTH_MAX = 64
log = structlog.get_logger("frontend")


@dataclass(frozen=True, slots=True)
class SuspectedClient:
    """A client of which a controller told."""

    told_s: float
    message: wire.ClientSuspected
    who: Mapping[str, str]  # as far as it is known


class Suspects:
    """Puts names to the numbers that controllers tell, in the log and in the answer to status."""

    def __init__(self, clients: Reception) -> None:
        self.askers = Askers(secrets.randbits(64))
        self._clients = clients
        self._named: dict[tuple[int, str], SuspectedClient] = {}  # {(number, ref): the latest}, oldest first

    def number(self, client: ClientId, request: InferRequest | Brief) -> int:
        """By which controllers know the client that asks. Raises: RequestRefused.

        A `source` counts where the client's key may name one: by another name for each request, a client would get rid
        of what is thought of it.
        """
        if request.source is not None and not self._clients.names_sources(client.identity):
            request = msgspec.structs.replace(request, source=None)
        return self.askers.number(client.identity, request)

    def told(self, message: wire.ClientSuspected) -> None:
        """It is logged who the client is, and kept."""
        asker = self.askers.name(message.client)
        who = self._describe(asker) if asker is not None else {}
        event = "quarantined_client" if message.pause_s else "suspect_client"
        pause = {"pause_s": message.pause_s} if message.pause_s else {}
        log.warning(event, client=message.client, ref=message.ref, code=message.code, **who, **pause)
        key = message.client, message.ref
        self._named.pop(key, None)
        self._named[key] = SuspectedClient(time.monotonic(), message, who)
        if len(self._named) > SUSPECTS_MAX:
            del self._named[next(iter(self._named))]

    def describe(self) -> list[dict[str, Any]]:
        """Those of the last KEPT_S, the latest first."""
        now = time.monotonic()
        return [
            {
                "client": named.message.client,
                "ref": named.message.ref,
                "code": named.message.code,
                "pause_s": named.message.pause_s,
                "ago_s": now - named.told_s,
                **named.who,
            }
            for named in reversed(self._named.values())
            if now - named.told_s < KEPT_S
        ]

    def _describe(self, asker: Asker) -> dict[str, str]:
        identity = "" if self._clients.is_drawn(asker.identity) else asker.identity.decode(errors="backslashreplace")
        who = {
            "peer": self._clients.peer_of(asker.identity) or "gone",
            "source": asker.source or "",
            "identity": identity[:IDENTITY_LENGTH_MAX],
        }
        return {name: told for name, told in who.items() if told}
