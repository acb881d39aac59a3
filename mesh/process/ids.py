"""Ids of a process, and of the machine that it runs on, as peers see them."""

import os
import secrets
from pathlib import Path


def member_id(role: str) -> str:
    """A new member id: the role and a random incarnation."""
    return f"{role}-{secrets.token_hex(4)}"


def host_id() -> str:
    """An id of this host, equal for processes that share memory and loopback."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]
    except OSError:
        return os.uname().nodename
