"""Ending one connection of a ROUTER, for which libzmq offers nothing."""

import os
import socket

import zmq


def shut(frame: zmq.Frame) -> None:
    """The connection on which this frame came is ended; whoever is at its other end sees that.

    A descriptor that was given to a later connection meanwhile is left alone if that one comes from elsewhere; one from
    the same address connects again by itself.
    """
    try:
        descriptor, address = int(frame.get(zmq.SRCFD)), str(frame.get("Peer-Address"))
        held = socket.socket(fileno=os.dup(descriptor))
    except (zmq.ZMQError, OSError, ValueError):
        return
    with held:
        try:
            if str(held.getpeername()[0]) == address:
                held.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended
