"""Lets in, at the ports of this process, who has a key whose role may call there: the ZAP handler of its sockets.

It runs on the loop, as a socket like the others: libzmq asks it once for each connection that is made, in that
connection's handshake, and waits. Source: ZeroMQ RFC 27 (ZAP).
"""

import hmac
import os
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
import zmq
from zmq.utils import z85

from mesh.net.key_folder import allowed
from mesh.net.keys import Keys
from mesh.roles import Holder, PortKind, may_call, who_may_call

ADDRESS = "inproc://zeromq.zap.01"
READ_AGAIN_S = 1.0  # files that were changed in place are seen after so long; new and removed ones at once
CLOCK_GRAIN_S = 0.05  # the disk's clock may be behind by so much: what was read just then may have changed since
REPLACED = b"500"  # in place of 400, which refuses a key: what was called here is gone, and another one listens
TOLD_S = 10.0  # least time between two log lines of one port about one reason
FAULTS_TOLD = 10
log = structlog.get_logger("keys")


class GuardedPort(NamedTuple):
    """A port that listens."""

    kind: PortKind
    owner: str  # id of the member whose port it is; empty: of none


@dataclass(slots=True)
class Doorkeeper:
    """Decides on every connection. Without keys of its own, or for a port that asks nothing, it is not asked."""

    keys: Keys
    refused: int = 0  # connections so far
    _ports: dict[str, GuardedPort] = field(default_factory=dict)  # {ZAP domain: port}
    _guarded: int = 0
    _holders: dict[str, Holder] = field(default_factory=dict)  # {public key: who may call with it}
    _announced: dict[str, Holder] = field(default_factory=dict)  # as of the last call of `revoked`
    _read_at: float = float("-inf")
    _files: set[tuple[str, int, int]] = field(default_factory=set)  # {(name, changed when, bytes)}, as of then
    _seen_ns: int = -1  # when the folder had been changed last, as of then
    _told: dict[tuple[PortKind, str], float] = field(default_factory=dict)  # {(port, reason): when it was logged}

    # -- ports --------------------------------------------------------------------------------------------------------

    def guard(self, sock: "zmq.Socket[bytes]", kind: PortKind, owner: str = "") -> None:
        """`sock`, not yet bound, lets in nobody whom the doorkeeper does not; `owner`: the member whose port it is.

        The clients' port of a mesh without a folder of keys stays open. Raises: ValueError (the process holds no key
        with which a port may listen).
        """
        keys = self.keys
        if keys.local and kind is PortKind.CLIENTS:
            return
        if keys.port_secret is None:
            raise ValueError(
                f"keys_dir={keys.folder}: there is no mesh.key_secret, without which no port can listen; the folder "
                "was made for a process that only calls (a client, an operator, a worker)"
            )
        self._guarded += 1
        domain = f"{kind}/{self._guarded}"
        if keys.local and kind is not PortKind.BROKER:
            sock.setsockopt(zmq.PLAIN_SERVER, 1)
        else:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_PUBLICKEY, keys.server)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.port_secret)
        sock.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a doorkeeper nobody is let in, in place of everybody
        self._ports[domain] = GuardedPort(kind, owner)

    # -- callers ------------------------------------------------------------------------------------------------------

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to a ZAP request: who the caller is, or that he is refused."""
        version, number, domain, address, _, mechanism, *credentials = request
        port = self._ports.get(domain.decode(errors="replace"))
        if version != b"1.0" or port is None:
            return [b"1.0", number, b"500", b"no such port", b"", b""]
        if mechanism == b"PLAIN" and self._seeks_another(port, *credentials):
            return [b"1.0", number, REPLACED, b"another member listens here", b"", b""]
        holder, why = self._holder(port, mechanism, credentials)
        if holder is not None and not why:
            return [b"1.0", number, b"200", b"", holder.written().encode(), b""]
        self._tell(port.kind, why, holder, address.decode(errors="replace"))
        return [b"1.0", number, b"400", b"refused", b"", b""]

    def admits(self, holder: Holder) -> bool:
        """Whether this caller, who is connected, has the same key and roles still."""
        if self.keys.local:
            return True
        self._read()
        return self._holders.get(holder.key) == holder

    def revoked(self) -> set[str]:
        """Reads the folder again. Returns the keys that are no more, or have other roles, since the last call."""
        before = self._announced
        self._read()
        self._announced = self._holders
        return {key for key, holder in before.items() if self._holders.get(key) != holder}

    def _holder(self, port: GuardedPort, mechanism: bytes, credentials: list[bytes]) -> tuple[Holder | None, str]:
        """(who it is, "" or why he is refused)."""
        if mechanism == b"PLAIN" and len(credentials) == 2:
            return self._bearer(port, *credentials)
        if mechanism != b"CURVE" or len(credentials) != 1:
            return None, "has no key"
        public = z85.encode(credentials[0]).decode()
        if self.keys.local:
            known = public == self.keys.public.decode()
            return (self.keys.holder, "") if known else (None, "its key is not allowed")
        self._read()
        holder = self._holders.get(public)
        if holder is None:
            return None, "its key is not allowed"
        return holder, "" if may_call(port.kind, holder.roles) else "its key lacks the role"

    def _bearer(self, port: GuardedPort, member: bytes, ticket: bytes) -> tuple[Holder | None, str]:
        """Whose ticket it is: every process of a mesh without a folder of keys is as good as any other."""
        expected = self.keys.ticket(port.kind, member.decode(errors="replace"))
        if hmac.compare_digest(expected.encode(), ticket):
            return self.keys.holder, ""
        return None, "its ticket is false: it has read another data_dir, or none"

    def _seeks_another(self, port: GuardedPort, member: bytes, ticket: bytes) -> bool:
        """Whether it has a ticket, for another member: one that listened here before."""
        if port.owner in ("", member.decode(errors="replace")):
            return False
        return self._bearer(port, member, ticket)[0] is not None

    def _read(self) -> None:
        """The keys that may call are those of the folder as it is now."""
        if self.keys.local:
            return
        folder, now = self.keys.folder, time.monotonic()
        try:
            changed_ns = os.stat(folder / "allowed").st_mtime_ns
            settled = time.time() - changed_ns / 1e9 > CLOCK_GRAIN_S
            if changed_ns == self._seen_ns and now - self._read_at < READ_AGAIN_S and settled:
                return
            entries = [(entry.name, entry.stat()) for entry in os.scandir(folder / "allowed")]
            files = {(name, at.st_mtime_ns, at.st_size) for name, at in entries}
            self._read_at = now
            if files == self._files and settled:
                self._seen_ns = changed_ns
                return
            found, faults = allowed(folder)
        except OSError as error:
            log.error("keys_unreadable", folder=str(folder), error=str(error), advice="those known before may call")
            return
        if files != self._files and faults:
            log.warning("keys_ignored", faults=faults[:FAULTS_TOLD], count=len(faults))
        self._holders = {key.public.decode(): key.holder for key in found}
        self._seen_ns, self._files = changed_ns, files

    def _tell(self, kind: PortKind, why: str, holder: Holder | None, address: str) -> None:
        self.refused += 1
        now = time.monotonic()
        if now - self._told.get((kind, why), float("-inf")) < TOLD_S:
            return
        self._told[kind, why] = now
        who = {"key": holder.name, "roles": ",".join(sorted(holder.roles))} if holder is not None else {}
        log.warning(
            "key_refused",
            port=str(kind),
            why=why,
            address=address,
            **who,
            needed=who_may_call(kind),
            total=self.refused,
        )
