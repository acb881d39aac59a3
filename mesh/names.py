"""What models, applications and versions may be called, and how many names are told in one sentence. Pure."""

import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
VERSION = re.compile(r"[0-9]{1,18}")
NAMES_SHOWN = 20  # in one sentence


def listed(names: Iterable[str]) -> str:
    """The names, for a sentence: in order, and of very many only the first."""
    there = sorted(names)
    more = f" and {len(there) - NAMES_SHOWN} more" if len(there) > NAMES_SHOWN else ""
    return (", ".join(there[:NAMES_SHOWN]) or "none") + more
