"""Messages of one ZeroMQ socket, in and out: `open_channel`.

pyzmq makes an object of each frame that is not copied, looks up an enum for each option, and raises an exception for
each socket that is empty. `mesh/net/_channel.c` does the same without, where it was built; `PlainChannel` says it in
Python. Figures: docs/design/transport.md.
"""

import errno
from collections.abc import Sequence
from typing import Final, Protocol, cast

import zmq

from mesh.process.compiled import asked_for_pure
from mesh.wire import Buffer

FRAME_BYTES_ZERO_COPY: Final = 64 * 1024  # smaller frames are copied, which costs less than the bookkeeping otherwise
NO_ROOM: Final = errno.EAGAIN  # what `send` returns if the peer's pipe is full
NO_PEER: Final = errno.EHOSTUNREACH  # if a ROUTER knows nobody of that name
CLOSED: Final = errno.ENOTSOCK  # if the socket was closed
NOBLOCK: Final = int(zmq.NOBLOCK)  # plain integers: combining enums is slow
MORE: Final = int(zmq.SNDMORE)
EVENTS: Final = zmq.EVENTS  # an attribute of an enum is slow to look up
POLLIN: Final = int(zmq.POLLIN)


class Channel(Protocol):
    """Receives from, and sends on, one socket, and never waits. After the socket was closed it is empty for good."""

    def take(self) -> tuple[bytes, Buffer, list[Buffer]] | None:
        """The next message as (name, body, further frames); None if none has arrived. Raises: zmq.ZMQError.

        `name` is the name of the connection if the socket is a ROUTER, else it is empty. Body and frames are bytes, or
        from FRAME_BYTES_ZERO_COPY on a view of ZeroMQ's memory, which stays as long as anybody holds the view.
        """

    def descriptor(self) -> int | None:
        """The file descriptor of the connection through which the message came that was taken last.

        None: its peer does not speak ZMTP 3, or the last `take` found nothing.
        """

    def said(self, name: str, /) -> str:
        """A property of that connection, as "User-Id" or "Peer-Address"; empty if it has none of that name."""

    def readable(self) -> bool:
        """Whether a message is there. To ask consumes the edge of the socket's descriptor."""

    def send(self, to: bytes | None, body: Buffer, frames: Sequence[Buffer] = (), /) -> int:
        """Sends one message, through the connection named `to` if the socket is a ROUTER (else None).

        Returns 0, or the errno of why the message was not taken: NO_ROOM, NO_PEER, CLOSED, or another of ZeroMQ's.
        Frames from FRAME_BYTES_ZERO_COPY on are sent from where they are, and must not be changed any more.
        Raises: TypeError, BufferError (one of the frames has no contiguous bytes; then nothing was sent).
        """


class PlainChannel:
    """A `Channel` in Python."""

    __slots__ = ("_last", "_router", "_sock")

    def __init__(self, sock: "zmq.Socket[bytes]") -> None:
        if sock.closed:
            raise ValueError("the socket is closed")
        self._sock = sock
        self._router = sock.getsockopt(zmq.TYPE) == zmq.ROUTER
        self._last: zmq.Frame | None = None  # the body of the message that was taken last: it knows its connection

    def take(self) -> tuple[bytes, Buffer, list[Buffer]] | None:
        """The next message as (name, body, further frames); None if none has arrived. Raises: zmq.ZMQError."""
        self._last = None
        sock = self._sock
        if sock.closed:
            return None
        name = b""
        try:
            if self._router:
                name = sock.recv(NOBLOCK)
            frame = sock.recv(NOBLOCK, copy=False)  # a ROUTER never delivers the name without a body
        except zmq.Again:
            return None
        self._last = frame
        body = _content(frame)
        frames: list[Buffer] = []
        while frame.more:
            frame = sock.recv(NOBLOCK, copy=False)
            frames.append(_content(frame))
        return name, body, frames

    def descriptor(self) -> int | None:
        """The file descriptor of the connection of the message that was taken last, if ZeroMQ says it."""
        if self._last is None:
            return None
        try:
            return int(self._last.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None

    def said(self, name: str, /) -> str:
        """A property of that connection; empty if it has none of that name."""
        if self._last is None:
            return ""
        try:
            return str(self._last.get(name))
        except zmq.ZMQError:
            return ""

    def readable(self) -> bool:
        """Whether a message is there."""
        return not self._sock.closed and bool(cast(int, self._sock.getsockopt(EVENTS)) & POLLIN)

    def send(self, to: bytes | None, body: Buffer, frames: Sequence[Buffer] = (), /) -> int:
        """Sends one message. Returns 0, or the errno of why it was not taken. Raises: TypeError, BufferError."""
        sock = self._sock
        if sock.closed:
            return CLOSED
        _check(body)  # before the first one leaves: half a message would be continued by the next one
        for data in frames:
            _check(data)
        flags = MORE if frames else 0
        last = len(frames) - 1
        try:
            if to is None:
                flags |= NOBLOCK
            else:
                sock.send(to, NOBLOCK | MORE)
            # if the connection ends from here on, the rest is dropped: only the first frame can be refused
            if len(body) < FRAME_BYTES_ZERO_COPY:
                sock.send(body, flags)
            else:
                sock.send(body, flags, copy=False)
            for i, data in enumerate(frames):
                sock.send(data, MORE if i < last else 0, copy=len(data) < FRAME_BYTES_ZERO_COPY)
        except zmq.ZMQError as error:
            return error.errno or CLOSED
        return 0


def _check(data: Buffer) -> None:
    """Raises: TypeError, BufferError: the data are not contiguous bytes."""
    if type(data) is not bytes and not memoryview(data).c_contiguous:
        raise BufferError("a frame is not contiguous")


def _content(frame: zmq.Frame) -> Buffer:
    return frame.bytes if len(frame) < FRAME_BYTES_ZERO_COPY else frame.buffer


def _compiled() -> "type[Channel] | None":
    """The channel in C; None: it was not built, does not know this libzmq, or is not wanted."""
    if asked_for_pure():
        return None
    try:
        from mesh.net import _channel
    except ImportError:
        return None
    return cast("type[Channel]", _channel.Channel)


COMPILED: "Final[type[Channel] | None]" = _compiled()


def open_channel(sock: "zmq.Socket[bytes]") -> Channel:
    """The channel of an open socket: the one in C where there is one. Raises: ValueError (the socket is closed)."""
    return PlainChannel(sock) if COMPILED is None else COMPILED(sock)  # type: ignore[call-arg]
