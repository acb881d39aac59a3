"""Policies: which batch and which LOAD a device gets next, and who is let in. All follow one protocol."""
