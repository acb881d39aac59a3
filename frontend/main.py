"""`python -m frontend`: where clients call."""

from broker.runtime import serve
from frontend.service import FrontendService


def main() -> None:
    """Runs a frontend until a signal; exits 0, or 2 with the reason if it cannot start."""
    serve("frontend", lambda runtime: [FrontendService(runtime)])
