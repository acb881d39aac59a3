"""`python -m broker`."""

from mesh.process.extras import start

if __name__ == "__main__":
    start("broker.main", "broker")
