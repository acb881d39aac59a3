"""`python -m frontend`: runs a frontend."""

from frontend.service import FrontendService
from mesh.process.runtime import serve


def main() -> None:
    """Runs a frontend until a signal. Exits 0, or 2 with the reason if it cannot start."""
    serve("frontend", lambda runtime: [FrontendService(runtime)])
