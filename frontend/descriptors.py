"""What the system knows of connections that ZeroMQ owns, and how one of them is ended; by their file descriptors."""

import os
import socket
import struct
from collections.abc import Callable

from frontend.core.unheard import Received

BYTES_RECEIVED_AT = 128  # offset of tcpi_bytes_received, 64 bits. Source: linux/tcp.h, struct tcp_info
BYTES_SENT_AT = 200  # of tcpi_bytes_sent and, behind it, tcpi_bytes_retrans, likewise; since Linux 4.19
INFO_BYTES_MIN, INFO_BYTES = BYTES_RECEIVED_AT + 8, BYTES_SENT_AT + 16


def received_by(descriptor: int) -> Received | None:
    """How much has come through the TCP connection and left through it, and to where; None if the system does not say
    (it is Linux that does).

    The descriptor is ZeroMQ's and stays as it is; by now it may be that of a later connection.
    """
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
        if len(info) < INFO_BYTES_MIN:
            return None
        count: int = struct.unpack_from("=Q", info, BYTES_RECEIVED_AT)[0]
        sent: int | None = None
        if len(info) >= INFO_BYTES:
            in_all, again = struct.unpack_from("=QQ", info, BYTES_SENT_AT)
            sent = in_all - again
        return Received(count, str(sock.getpeername()[0]), sent)
    except OSError:
        return None
    finally:
        sock.detach()


def address_of(descriptor: int) -> str:
    """Where the connection comes from, as host:port; empty if the descriptor is no connection (any more).

    It stays as it is, and may by now be that of a later connection.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        host, port = sock.getpeername()[:2]
        return f"{host}:{port}"
    except OSError:
        return ""
    finally:
        sock.detach()


def close_connection(descriptor: int, is_it: Callable[[], bool]) -> str | None:
    """The connection is ended, so that both sides see it: ZeroMQ, which closes the descriptor, and the client.

    Returns the client's address; None, and does nothing, if the descriptor is not that connection's any more: `is_it`
    takes in what ZeroMQ has said about connections that ended, and says whether it is. The descriptor is duplicated
    before, so that nothing can change in between. Where there is no descriptor left for that, what else could have it
    a moment later is another client that came when there was no room.
    """
    try:
        held = os.dup(descriptor)
    except OSError:
        return _ended(descriptor, is_it)
    try:
        return _ended(held, is_it)
    finally:
        os.close(held)


def _ended(descriptor: int, is_it: Callable[[], bool]) -> str | None:
    """The connection with this descriptor, which stays open, is ended if it is that one. Returns its peer's address."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if not is_it():
            return None
        host, port = sock.getpeername()[:2]
        sock.shutdown(socket.SHUT_RDWR)
        return f"{host}:{port}"
    except OSError:
        return None
    finally:
        sock.detach()
