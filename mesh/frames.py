"""The tensors of an envelope: further frames, in the order of the messages that own them. Pure."""

from collections.abc import Iterator
from itertools import islice

from mesh.wire import Buffer


class FramesMissing(Exception):
    """An envelope has fewer frames than its messages name; from that message on it is refused."""


def take_frames(frames: Iterator[Buffer], count: int) -> list[Buffer]:
    """The next `count` frames. Raises: FramesMissing."""
    taken = list(islice(frames, max(0, count)))
    if len(taken) < count:
        raise FramesMissing(f"a message names {count} frames; {len(taken)} are left of the envelope's")
    return taken
