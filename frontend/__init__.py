"""Where clients call. `frontend.client` holds the Python clients, which need only pyzmq, msgpack and numpy."""

from mesh.process.compiled import install

install()
