"""Sockets, links between services, keys, and a service's registration with the broker."""
