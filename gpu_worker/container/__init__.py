"""Serves a black-box Python function as a worker: its own interpreter and process, one model, always resident."""
