"""Processes that generate load: requests, when each is due, and the sockets that they go through."""
