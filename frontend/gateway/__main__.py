"""`python -m frontend.gateway`."""

from mesh.process.extras import start

if __name__ == "__main__":
    start("frontend.gateway.main", "gateway")
