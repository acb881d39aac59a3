"""What the code was doing when an exception came: noted on the exception, as compiled code has no variables to read."""

from collections.abc import Iterable
from typing import Final

NAME: Final = "gearmesh_doing"  # of the attribute


class Doing:
    """Whose messages were being processed."""

    __slots__ = ("messages", "peer")

    def __init__(self, messages: Iterable[object], peer: str) -> None:
        self.messages = list(messages)
        self.peer = peer


def note(error: BaseException, messages: Iterable[object], peer: str) -> None:
    """The exception came while these messages of this peer were processed. What was noted first stays."""
    if doing_of(error) is None:
        setattr(error, NAME, Doing(messages, peer))


def doing_of(error: BaseException) -> Doing | None:
    """What was noted; None: nothing was."""
    noted = getattr(error, NAME, None)
    return noted if isinstance(noted, Doing) else None
