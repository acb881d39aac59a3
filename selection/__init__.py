"""Policies of applications: which models a query asks, how their answers are combined, and what feedback changes."""

from mesh.process.compiled import install

install()
