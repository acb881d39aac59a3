"""`python -m frontend`: where clients call."""

from frontend.service import FrontendService
from mesh.process.runtime import serve


def main() -> None:
    """Runs a frontend until a signal; exits 0, or 2 with the reason if it cannot start."""
    serve("frontend", lambda runtime: [FrontendService(runtime)])
