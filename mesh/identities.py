"""The names of links, as the ROUTER at their other end knows them: which member opened a link, and whom it calls. Pure.

``member#number.nonce@peer``: each link that is opened has a name of its own, so that an older link, whose connection
may be half dead, has nothing that its successor needs. Without ``#`` the whole is the member, as operators call.
"""

import re
from dataclasses import dataclass

MEMBER_BYTES_MAX = 100
IDENTITY_BYTES_MAX = 255  # source: ZeroMQ RFC 23, a length in one byte
_FORM = re.compile(r"(?P<member>[^#@\0]+)(#(?P<number>[0-9]{1,15})\.[0-9a-f]{1,16}@(?P<peer>[^#@\0]*))?")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a link says that it is of."""

    member: str
    number: int = 0  # of the links that this member's process opened: the newest has the highest; 0: it has no number
    peer: str = ""  # member id, or role, of whom it calls; empty: it does not say


def named(member: str, number: int, nonce: str, peer: str) -> bytes:
    """The name of a link. `nonce`: hexadecimal digits that no stranger can guess, who could take the name before.

    Raises: ValueError, if it is no name that a port would read.
    """
    identity = f"{member}#{number}.{nonce}@{peer}".encode()
    if claimed(identity) != Identity(member, number, peer):
        raise ValueError(f"{member!r} calling {peer!r} makes no name of a link")
    return identity


def claimed(identity: bytes) -> Identity | None:
    """Who that link says that it is of; None if that cannot be read."""
    if len(identity) > IDENTITY_BYTES_MAX:
        return None
    try:
        found = _FORM.fullmatch(identity.decode())
    except UnicodeDecodeError:
        return None
    if found is None or len(found["member"].encode()) > MEMBER_BYTES_MAX:
        return None
    return Identity(found["member"], int(found["number"] or 0), found["peer"] or "")
