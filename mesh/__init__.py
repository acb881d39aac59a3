"""The ground floor: messages, codes, names, tensors, clocks. Pure, but for `net` and `process`."""

from mesh.process.compiled import install

install()
