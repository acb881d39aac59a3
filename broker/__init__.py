"""The broker: the registry that tells services of each other, and the catalogue of models and applications."""

from mesh.process.compiled import install

install()
