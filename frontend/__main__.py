"""`python -m frontend`."""

from mesh.process.extras import start

if __name__ == "__main__":
    start("frontend.main", "frontend")
