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
        held = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return
    with held:
        try:
            if str(held.getpeername()[0]) == address:
                held.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended
