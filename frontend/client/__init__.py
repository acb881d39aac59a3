"""The Python clients. They need pyzmq, msgpack and numpy, and no other module of gearmesh."""
