"""Where clients call. `frontend.client` holds `Client` and `AsyncClient`, and needs only pyzmq, msgpack and numpy."""
