"""Where a member says that it listens: checked before anybody connects there. Pure."""

import ipaddress
from collections.abc import Sequence

ADDRESSES_MAX = 8
ADDRESS_LENGTH_MAX = 200
MEMORY = "memory://"
TCP = "tcp://"


def address_fault(addresses: Sequence[str]) -> str:
    """Why these are no addresses of one port; empty if they are.

    At least one is ``tcp://IP:PORT``. Names of hosts are none: looking one up holds up all other connections of a
    process, for seconds if nobody knows it. Ports announce the number that the system gave them.
    """
    if not 0 < len(addresses) <= ADDRESSES_MAX:
        return f"{len(addresses)} addresses; there must be 1 to {ADDRESSES_MAX}"
    for address in addresses:
        fault = _fault(address)
        if fault:
            return f"{address[:ADDRESS_LENGTH_MAX]!r} {fault}"
    if all(address.startswith(MEMORY) for address in addresses):
        return "no tcp:// address: other processes could not call"
    return ""


def _fault(address: str) -> str:
    if len(address) > ADDRESS_LENGTH_MAX:
        return f"has {len(address)} characters; {ADDRESS_LENGTH_MAX} are the most"
    if address.startswith(MEMORY):
        return ""
    if not address.startswith(TCP):
        return f"is neither {TCP} nor {MEMORY}"
    host, colon, port = address.removeprefix(TCP).rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        return "has no port from 1 to 65535"
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return "names no IP address"
    return ""
