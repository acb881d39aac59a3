"""Ending one connection of a ROUTER, for which libzmq offers nothing."""

import os
import socket


def shut(descriptor: int | None, address: str) -> None:
    """The connection with this descriptor is ended, whose peer is at `address`; whoever is there sees that.

    A descriptor that was given to a later connection meanwhile is left alone if that one comes from elsewhere; one from
    the same address connects again by itself.
    """
    if descriptor is None:
        return  # the peer does not speak ZMTP 3
    try:
        held = os.dup(descriptor)  # so that nothing can change in between
    except OSError:
        return  # it has ended
    try:
        _shut_if_from(held, address)
    except OSError:
        return  # it has ended, or is no socket by now
    finally:
        os.close(held)


def _shut_if_from(descriptor: int, address: str) -> None:
    """Raises: OSError."""
    sock = socket.socket(fileno=descriptor)
    try:
        if str(sock.getpeername()[0]) == address:
            sock.shutdown(socket.SHUT_RDWR)
    finally:
        sock.detach()
