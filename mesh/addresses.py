"""Where a member listens, as it says: addresses that a peer may try without harm to itself. Pure."""

import re
from collections.abc import Sequence

TCP = re.compile(r"tcp://(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Za-z:.%]{2,64}\]):([0-9]{1,5})")
MEMORY = re.compile(r"memory://[\x21-\x7e]{1,256}")


def is_tcp(address: str) -> bool:
    """Whether the address is of the form tcp://HOST:PORT, with a port that there is."""
    found = TCP.fullmatch(address)
    return found is not None and 1 <= int(found[1]) <= 65535


def are_usable(addresses: Sequence[str]) -> bool:
    """Whether others can call there: each address is one, and one at least can be reached from another process."""
    return any(map(is_tcp, addresses)) and all(is_tcp(each) or MEMORY.fullmatch(each) for each in addresses)
