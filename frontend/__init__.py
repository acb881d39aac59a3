"""Where clients call. `frontend.client.client` holds `Client` and `AsyncClient`, and needs only pyzmq, msgpack and numpy."""
