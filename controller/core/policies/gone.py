"""Models that are gone, of which a policy still knows something. Pure."""

from collections.abc import Collection

GONE_MAX = 64  # of which that may be, and of as many as are there


def gone_among(known: Collection[str], models: Collection[str]) -> list[str]:
    """Those of the known that are gone, if they are many; whoever asks with each new one, asks at little cost."""
    if len(known) <= 2 * len(models) + GONE_MAX:
        return []
    return [ref for ref in known if ref not in models]
