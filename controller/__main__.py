"""`python -m controller`."""

from mesh.process.extras import start

if __name__ == "__main__":
    start("controller.main", "controller")
