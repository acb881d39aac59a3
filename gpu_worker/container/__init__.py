"""A black-box Python function as a worker: its own interpreter, its own process, one model, always resident."""
